// Tries: tokens drawn from all, each of which is kept if little enough comes before it in the order. The slices' masses often tell at once that it
// is; otherwise it takes one look at the groups whose largest logit is above it.
#pragma once
#include "draw.h"

// What may refuse a try, beside min-p, is the number of tokens before it, or their mass: two words a try.
#define WORDS (2 * TRIES)
#define EACH_TRY ((1u << TRIES) - 1)

// What is above a token that is kept is less than this. Asked by lanes of a wave, each for its own.
DEVICE u64 limit_of(const RowParams &p, u64 whole, u32 weigh) { return weigh == BY_COUNT ? p.top_k : nucleus_limit(p.top_p, whole); }
DEVICE bool is_judged(u32 flags, u32 weigh) { return flags & (weigh == BY_COUNT ? TOP_K : TOP_P); }

// A token that was drawn, as a slice sees it: above it are the tokens with a larger logit than this, in the slice of the token itself a few that tie
// with it, too.
struct Drawn {
    u32 id;
    float logit, previous;
};

DEVICE Drawn drawn_of(const Try &drawn) { return {drawn.id, drawn.logit, drawn.previous}; }
DEVICE float threshold_in(Drawn drawn, u32 j) { return drawn.id > j * SLICE ? drawn.previous : drawn.logit; }

// What a wave has in shared memory while it goes from slices to groups: the groups to read, as slices of the few at hand, and how these weigh.
struct Reached {
    struct alignas(16) {
        float floor, magic;
        Shift shift;
    } units[AT_ONCE];
    u32 groups[AT_ONCE * GROUPS];
};

// What the waves of a block have found: at first what the slices hold that reach above each try, then what is above those that are asked for.
struct Sums {
    u64 bounds[WORDS][DRAWING_WAVES];
    u64 above[2][WAVES][TRIES];
    Reached reached[WAVES];
    u64 lanes[TRIES][BLOCK];
};
static_assert(sizeof(Sums) <= CAPACITY * 8, "room where keys will be");

DEVICE Sums &sums_of(Shared &shared) { return *(Sums *)shared.list.keys; }

// A bit for each word of which `over` says that what is above the try is too much, or may be; and for each try that min-p refuses.
struct Doubts {
    u32 words, low;
};

// The first of the tries without a doubt; TRIES if there is none.
DEVICE u32 first_kept(Doubts doubts) { return lowest_bit((u64)(~(doubts.words | doubts.words >> TRIES | doubts.low) & EACH_TRY) | 1u << TRIES); }

DEVICE Doubts doubts_of(const Shared &shared, u64 above, u32 asked) {
    u32 lane = opaque(thread_index()) % WAVE, weigh = lane / TRIES % 2, d = lane % TRIES;
    bool over = asked >> lane % 32 & 1 && lane < WORDS && above >= limit_of(shared.params, shared.whole, weigh);
    return {(u32)vote(over), (u32)vote(lane < TRIES && shared.tried.drawn[d].key <= shared.least)};
}

// What the slices tell of the tries: they hold what is above one, and the try itself, in those slices that reach above it. Leaves the first try
// without a doubt, and what is to be asked of those before it. Has a barrier at the end.
DEVICE void bound_tries(Shared &shared, u32 flags) {
    const Slices &slices = slices_of(shared);
    Sums &sums = sums_of(shared);
    u32 t = opaque(thread_index()), wave = t / WAVE, lane = t % WAVE, part = wave % DRAWING_WAVES;
    ROLLED for (u32 d = wave / DRAWING_WAVES; d < TRIES; d += BLOCK / DRAWING) {
        u32 count = 0;
        Drawn drawn = drawn_of(shared.tried.drawn[d]);
        u64 mass = 0;
        if (uniform(shared.slices <= BLOCK)) {
            ROLLED for (u32 j = t % DRAWING; j < shared.slices; j += DRAWING) {
                bool above = slices.largest[j] > threshold_in(drawn, j);
                mass += above ? slices.shares[j] : 0;
                count += above;
            }
        } else {
            ROLLED for (u32 j = t % DRAWING; j < shared.slices; j += DRAWING) {
                bool above = shared.largest[j] > threshold_in(drawn, j);
                mass += above ? share_of(shared, j) : 0;
                count += above;
            }
        }
        if (flags & TOP_P) mass = wave_sum(mass);
        if (flags & TOP_K) count = wave_sum(count);
        if (lane == 0) {
            sums.bounds[BY_COUNT * TRIES + d][part] = (u64)count * SLICE;
            sums.bounds[BY_MASS * TRIES + d][part] = mass;
        }
    }
    barrier();
    if (wave == 0) {
        u32 weigh = lane / TRIES % 2, mine = lane % WORDS;
        u64 above = 0;
        UNROLL for (u32 i = 0; i < DRAWING_WAVES; i++) above += sums.bounds[mine][i];
        above -= shared.tried.drawn[mine % TRIES].own[weigh];
        Doubts doubts = doubts_of(shared, above, (u32)vote(lane < WORDS && is_judged(flags, weigh)));
        u32 kept = first_kept(doubts), before = ~doubts.low & ((1u << kept) - 1);
        if (lane == 0) {
            shared.tried.kept = kept;
            shared.tried.words = doubts.words & (before | before << TRIES);
        }
    }
    barrier();
}

#define SHARE_BITS 30
#define EIGHTS_AT_ONCE 3u  // of groups, to a lane

// Whether halves hold the row's largest logit, and whatever is too low for them weighs nothing beside it.
DEVICE bool halves_tell(const Seen &seen) {
    float most = key_logit(seen.top);
    return seen.scale.base == 0.0f && most <= LARGEST_HALF && (-LARGEST_HALF - most) * seen.scale.scale < -NEGLIGIBLE;
}

// What the groups' largest logits tell of the tries whose mass is in doubt: of the slices that reach above a try, at least the largest tokens of
// those groups that do not are not above it, and the largest of those that do are. They are bounds, so a little error does no harm. For rows
// without top-k of which halves tell. Has a barrier at the end.
DEVICE void bound_by_groups(Shared &shared, Block &b) {
    const u32 lanes_of_slice = GROUPS / 8;
    const Sums &sums = sums_of(shared);
    u32 asked = uniform(shared.tried.words) >> BY_MASS * TRIES, kept = uniform(shared.tried.kept), lanes = shared.slices * lanes_of_slice;
    u64 whole = shared.whole;
    float scale = shared.scale.scale, largest = MAGIC + FRACTION - float_of(shared.unit);
    float below[TRIES] = {}, above[TRIES] = {};
    ROLLED for (u32 start = opaque(wave_index() * WAVE); start < lanes; start += EIGHTS_AT_ONCE * BLOCK) {
        Eight<f16> eight[EIGHTS_AT_ONCE];
        UNROLL for (u32 q = 0; q < EIGHTS_AT_ONCE; q++) {
            u32 lane = start + q * BLOCK + lane_index();
            eight[q] = *(const Eight<f16> *)(const f16 *)(shared.groups + (lane < lanes ? lane * 8 : 0));
        }
        UNROLL for (u32 q = 0; q < EIGHTS_AT_ONCE; q++) {
            u32 lane = start + q * BLOCK + lane_index(), j = (lane < lanes ? lane : 0) / lanes_of_slice;
            if (start + q * BLOCK >= lanes) break;
            float slice = lane < lanes ? shared.largest[j] : NEG_INF, weights[8];
            UNROLL for (u32 c = 0; c < 8; c++) weights[c] = exp2_about(fma_f32(lowered(widen(eight[q].x[c])), scale, -largest));
            UNROLL for (u32 d = 0; d < TRIES; d++) {
                if (!(asked >> d & 1)) continue;
                Drawn drawn = drawn_of(shared.tried.drawn[opaque(d)]);
                // What is rounded up to more than the try would be, is above it.
                float threshold = threshold_in(drawn, j), up = half_to_float(half_not_below(drawn.logit)), not_above = 0.0f, is_above = 0.0f;
                UNROLL for (u32 c = 0; c < 8; c++) {
                    float most = widen(eight[q].x[c]);
                    not_above += most > threshold ? 0.0f : weights[c];
                    is_above += most > up ? weights[c] : 0.0f;
                }
                below[d] += slice > threshold ? not_above : 0.0f;
                above[d] += slice > threshold ? is_above : 0.0f;
            }
        }
    }
    // From what tokens weigh, where the row's largest weighs about 1, to shares of the whole.
    float to_share = float_of((127 + FRACTION + HEADROOM + SHARE_BITS) << 23) / (float)whole;
    // Floats may be off by 2^-19 of a weight, integers by half a unit of the slice and one of the row, of which the whole has 2^37 or more: all
    // groups together by less than the margin.
    u64 margin = whole >> 14, limit = nucleus_limit(shared.params.top_p, whole);
    u32 words = 0;
    UNROLL for (u32 d = 0; d < TRIES; d++) {
        if (!(asked >> d & 1) || kept < d) continue;
        u32 shares[2] = {(u32)(below[d] * to_share), (u32)(above[d] * to_share)};
        block_sums<2>(b, shares);
        u64 least = mul_hi((u64)shares[1] << (64 - SHARE_BITS), whole), not_above = mul_hi((u64)shares[0] << (64 - SHARE_BITS), whole), most = 0;
        UNROLL for (u32 i = 0; i < DRAWING_WAVES; i++) most += sums.bounds[BY_MASS * TRIES + d][i];
        most -= shared.tried.drawn[d].own[BY_MASS];
        if (least >= limit + margin) continue;
        if (most + margin - (not_above < most ? not_above : most) < limit)
            kept = d;
        else
            words |= 1u << (BY_MASS * TRIES + d);
    }
    if (opaque(thread_index()) == 0) {
        shared.tried.words = words;
        shared.tried.kept = kept;
    }
    barrier();
}

// Two fours of tokens that a lane has read: where they begin, and what they weigh, in units of 2^left.
struct TwoFours {
    u32 id[2], left[2], weights[8];
    float z[8];
};

// What of these is above a try.
DEVICE u64 above_try(const TwoFours &two, Drawn drawn) {
    u64 sum = 0;
    UNROLL for (u32 q = 0; q < 2; q++) {
        float threshold = two.id[q] + 4 <= drawn.id ? drawn.previous : drawn.logit;
        u32 found = 0;
        UNROLL for (u32 c = 4 * q; c < 4 * q + 4; c++) found += two.z[c] > threshold ? two.weights[c] : 0;
        sum += (u64)found << two.left[q];
    }
    return sum;
}

// Leaves in sums.above what each wave finds above those tries that have a bit in `asked`, in every `step`-th slice from `j` on. A wave takes a few
// slices, and of those the groups that reach the lowest of the tries, which may be the only `one`.
template <typename T, bool one>
DEVICE void sum_above(Shared &seen, u32 asked, const Try &lowest, Weigh weigh, u32 j, u32 step) {
    Sums &sums = sums_of(seen);
    u32 t = opaque(thread_index()), lane = t % WAVE, slices = seen.slices;
    Reached &reached = sums.reached[t / WAVE];
    Drawn down_to = drawn_of(lowest);
    u64 sum = 0;
    if (!one) ROLLED for (u32 bits = asked; bits; bits &= bits - 1) sums.lanes[lowest_bit(bits)][t] = 0;
    ROLLED for (; j < slices; j += AT_ONCE * step) {
        float most[AT_ONCE];
        u32 count = 0;
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) most[q] = widen(((const f16 *)seen.groups)[(j + q * step < slices ? j + q * step : j) * GROUPS + lane % GROUPS]);
        if (lane < AT_ONCE && j + lane * step < slices) {
            SliceScale s = scale_of(seen, j + lane * step);
            reached.units[lane] = {s.floor, s.magic, shift_of(s, seen.unit)};
        }
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            bool reaches = lane < GROUPS && j + q * step < slices && most[q] > threshold_in(down_to, j + q * step);
            u64 hits = vote(reaches);
            if (reaches) reached.groups[count + count_bits(hits & (((u64)1 << lane) - 1))] = q * GROUPS + lane;
            count += count_bits(hits);
        }
        wave_barrier();
        // Four lanes read a group, two at a time.
        ROLLED for (u32 first = 0; first < count; first += WAVE / 2) {
            Four<T> four[2];
            TwoFours two;
            u32 slice[2];
            UNROLL for (u32 q = 0; q < 2; q++) {
                u32 i = first + q * (WAVE / 4) + lane / 4, group = reached.groups[i < count ? i : 0];
                slice[q] = group / GROUPS;
                two.id[q] = i < count ? (j + slice[q] * step) * SLICE + group % GROUPS * GROUP + lane % 4 * 4 : seen.vocab;
            }
            read_fours<2>((const T *)seen.logits, seen.vocab, two.id, four);
            UNROLL for (u32 q = 0; q < 2; q++) {
                // Where a slice reaches above a token that was drawn, it has mass.
                auto of = reached.units[slice[q]];
                SliceScale s = {true, seen.scale.base, seen.scale.scale, of.floor, of.magic};
                two.left[q] = weigh == BY_COUNT ? 0 : of.shift.left;
                UNROLL for (u32 c = 4 * q; c < 4 * q + 4; c++) {
                    two.z[c] = token_of(four[q], c % 4);
                    two.weights[c] = weigh == BY_COUNT ? 1 : weight(s, two.z[c]) >> of.shift.right;
                }
            }
            if (one) sum += above_try(two, down_to);
            ROLLED for (u32 bits = one ? 0 : asked; bits; bits &= bits - 1)
                sums.lanes[lowest_bit(bits)][t] += above_try(two, drawn_of(seen.tried.drawn[lowest_bit(bits)]));
        }
        wave_barrier();  // the votes are one already, but do not promise it
    }
    ROLLED for (u32 bits = asked; bits; bits &= bits - 1) {
        sum = wave_sum(one ? sum : sums.lanes[lowest_bit(bits)][t]);
        if (lane == 0) sums.above[weigh][t / WAVE][lowest_bit(bits)] = sum;
    }
}

// The same in this block's part of the row, for all that is asked.
template <typename T>
DEVICE void sum_asked(Shared &shared) {
    ROLLED for (u32 weigh = BY_COUNT; weigh <= BY_MASS; weigh++) {
        u32 words = uniform(shared.tried.words), tries = (words | words >> TRIES) & EACH_TRY, first = lowest_bit(tries);
        if (!(words >> weigh * TRIES & EACH_TRY)) continue;
        const Try *drawn = shared.tried.drawn, *lowest = drawn + first;
        ROLLED for (u32 d = first + 1; d < TRIES; d++)
            if (tries >> d & 1 && drawn[d].key < lowest->key) lowest = drawn + d;
        u32 j = shared.part * WAVES + opaque(thread_index()) / WAVE, step = shared.parts * WAVES;
        if ((tries & (tries - 1)) == 0)
            sum_above<T, true>(shared, tries, *lowest, (Weigh)weigh, j, step);
        else
            sum_above<T, false>(shared, tries, *lowest, (Weigh)weigh, j, step);
    }
}

// A mass is below 2^39, and what a row's tokens weigh below this power of two.
DEVICE u32 bits_of_sum(u32 vocab) { return 40 + highest_bit(vocab); }

// Parts of a row for so many blocks: no more than can be counted in the bits that a sum leaves, nor than have a slice for each wave.
DEVICE u32 parts_of_row(u32 vocab, u32 slices, u32 blocks) {
    u32 countable = 1u << (64 - bits_of_sum(vocab)), most = (slices + WAVES - 1) / WAVES;
    most = most < countable ? most : countable;
    return blocks < 1 ? 1 : blocks < most ? blocks : most;
}

// Adds what this block has found to what the row's others have, of whom nobody waits for another: who is last knows all, and writes the first try
// that is kept. True if none is. One of the sums counts the blocks in the bits that it leaves. One wave's, a lane for each word.
DEVICE bool conclude(Shared &shared) {
    const Sums &sums = sums_of(shared);
    u32 words = uniform(shared.tried.words), bits = bits_of_sum(shared.vocab), counted = lowest_bit(words);
    u32 lane = opaque(thread_index()) % WAVE, mine = lane % WORDS;
    bool asked = lane < WORDS && words >> mine & 1;
    u64 above = 0;
    ROLLED for (u32 wave = lane / WORDS; wave < WAVES; wave += WAVE / WORDS) above += words >> mine & 1 ? sums.above[mine / TRIES][wave][mine % TRIES] : 0;
    ROLLED for (u32 mask = WORDS; mask < WAVE; mask *= 2) above += shuffle_xor_u64(above, mask);
    u32 parts = uniform(shared.parts);
    if (parts > 1) {
        GLOBAL u64 *all = shared.wide->tally.above[0];
        bool several = (words & (words - 1)) != 0, last = false;
        u64 others = 0;
        // Who counts comes after these have arrived, as their answers show.
        if (several) others = vote(asked && lane != counted && atomic_add_on_device((u64 *)all + mine, above) >> 63);
        if (lane == counted) {
            u64 before = atomic_add_on_device((u64 *)all + mine, above | (u64)(others == 0) << bits);
            last = before >> bits == parts - 1;
            above += before & (((u64)1 << bits) - 1);
        }
        if (!vote(last)) return false;
        if (several && asked && lane != counted) above = atomic_add_on_device((u64 *)all + mine, 0);
    }
    above += shared.tried.drawn[mine % TRIES].tied[mine / TRIES];
    Doubts doubts = doubts_of(shared, above, words);
    doubts.low |= ~(words | words >> TRIES);
    u32 first = first_kept(doubts);
    if (first == TRIES) first = shared.tried.kept;
    if (first < TRIES) write_token(shared, shared.tried.drawn[first].id);
    return first == TRIES;
}

// What is left to do with a row: nothing; to ask for what is above its tries; to search for what is kept, after tries or without.
enum Next { DONE, ASK, SEARCH_AFTER_TRIES, SEARCH };

// Asks for what is above the tries, and draws the first that is kept. Of the row's blocks, the last to add up its slices goes on if there is none.
template <typename T>
DEVICE Next draw_asked(Row<T> &row) {
    Shared &shared = *row.shared;
    sum_asked<T>(shared);
    barrier();
    if (wave_index() == 0) {
        bool searches = conclude(shared);
        if (lane_index() == 0) shared.searches = searches;
    }
    barrier();
    return uniform(shared.searches) ? SEARCH_AFTER_TRIES : DONE;
}

// Who asks: the row's blocks, at once; or, where rows are many, another launch, in which blocks are divided by the rows that have something to ask.
enum Stage { BY_ITS_BLOCKS, TO_BE_ASKED, ASKED };

// Puts the row in the queue of those that have something to ask, for the next launch.
DEVICE void leave_to_be_asked(const Shared &shared) {
    GLOBAL Wide *wide = shared.wide;
    u32 t = opaque(thread_index());
    if (t < STATE_WORDS) ((GLOBAL u32 *)&wide->state)[t] = ((const u32 *)(const State *)&shared)[t];
    if (t < TRIED_WORDS) ((GLOBAL u32 *)&wide->tried)[t] = ((const u32 *)&shared.tried)[t];
    if (t) return;
    u64 *all = (u64 *)wide - (u64)block_index() * WIDE_WORDS;
    wide_of(all, atomic_add_on_device((u32 *)&wide_of(all, 0)->tally.queued, 1))->queue = block_index();
}

// Draws tries, and the first that is kept if the slices tell. Several blocks of a row all draw the same.
template <typename T>
DEVICE Next draw_tries(Row<T> &row, u32 stage) {
    Shared &shared = *row.shared;
    u64 whole = sum_slices(row, true);
    draw_by_slices<T>(shared, row.block, shared.random, TRIES, whole, true, 0, shared.tried.drawn);
    bound_tries(shared, row.flags);
    // Where rows are fewer, to ask is as quick, and quicker for flat rows.
    bool by_groups = MANY_ROWS && stage == TO_BE_ASKED && !(row.flags & TOP_K);
    if (by_groups && uniform(shared.tried.words != 0 && halves_tell(shared))) bound_by_groups(shared, row.block);
    if (uniform(shared.tried.words) == 0) {
        u32 kept = uniform(shared.tried.kept);
        if (shared.part) return DONE;
        if (kept == TRIES) return SEARCH_AFTER_TRIES;
        write_token(shared, shared.tried.drawn[kept].id);
        return DONE;
    }
    if (stage == BY_ITS_BLOCKS) return ASK;
    leave_to_be_asked(shared);
    return DONE;
}
