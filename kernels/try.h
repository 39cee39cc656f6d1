// Tries: tokens drawn from all, each of which is kept if little enough comes before it in the order. The slices' masses often tell at once that it
// is; otherwise it takes one look at the groups whose largest logit is above it, by floats. Integers decide where these come too near to the limit.
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
// The same for four tokens from `first` on.
DEVICE float threshold_of_four(Drawn drawn, u32 first) { return first + 4 <= drawn.id ? drawn.previous : drawn.logit; }

// Slices of a block's part of the row that are gone through together.
#define ASKED_SLICES 320u

// What the waves of a block have found: at first what the slices hold that reach above each try; then what is above those that are asked for, as counts
// and shares and, where these do not tell, exactly. And the groups to read for it.
struct Sums {
    u64 bounds[WORDS][DRAWING_WAVES];
    u32 about[WORDS][WAVES];
    u64 exact[TRIES][WAVES];
    u16 groups[ASKED_SLICES * GROUPS];
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

// What is above a try is found by the hardware's exp2 first, and by floats, to within a margin. In parts of the whole: 2^-19 of each weight; 2^-16.7 where
// a lane adds up 160 fours; 2^-17 where 2^14 lanes round to a share; and of the integers, half a unit of 512 tokens' slice, 2^-18.5, and a unit of the
// row for each token, 2^-17.5 of 2^20 tokens. Together less than 2^-15; of 2^24 tokens, less than 2^-12. Tests make it large, so that nothing is told.
#ifndef MARGIN_BITS
#define MARGIN_BITS 15
#endif
DEVICE u64 margin_of(const Seen &seen) { return seen.whole >> MARGIN_BITS << (seen.vocab > 1u << 20 ? 3 : 0); }

// The weight of a logit where the row's largest weighs about 1.
struct About {
    float base, scale, largest;
};

DEVICE About about_of(const Seen &seen) { return {seen.scale.base, seen.scale.scale, MAGIC + FRACTION - float_of(seen.unit)}; }
DEVICE float weight_about(About about, float logit) { return exp2_about(fma_f32(logit - about.base, about.scale, -about.largest)); }

// Sums of these as integers of so many bits, shares: in a unit of which the whole has less than 2^31.
#define SHARE_BITS 31

DEVICE u32 share_unit(u64 whole) { return highest_bit(whole) + 1 - SHARE_BITS; }
DEVICE u32 share_about(float sum, u64 whole) { return round_u32(sum * float_of((127 + FRACTION + HEADROOM - share_unit(whole)) << 23)); }
DEVICE u64 mass_of_share(u32 share, u64 whole) { return (u64)share << share_unit(whole); }

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
    About about = about_of(shared);
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
            UNROLL for (u32 c = 0; c < 8; c++) weights[c] = weight_about(about, lowered(widen(eight[q].x[c])));
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
    u64 margin = margin_of(shared), limit = nucleus_limit(shared.params.top_p, whole);
    u32 words = 0;
    UNROLL for (u32 d = 0; d < TRIES; d++) {
        if (!(asked >> d & 1) || kept < d) continue;
        u32 shares[2] = {share_about(below[d], whole), share_about(above[d], whole)};
        block_sums<2>(b, shares);
        u64 least = mass_of_share(shares[1], whole), not_above = mass_of_share(shares[0], whole), most = 0;
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

// Lists those groups that reach above a try, of slice `j` and each `step` further on, ASKED_SLICES of them or to the row's end. Has barriers, one at
// the end.
DEVICE void list_reached(Shared &shared, Drawn drawn, u32 j, u32 step) {
    const u32 lanes_of_slice = GROUPS / 8;
    // After the last list has been read.
    barrier();
    if (thread_index() == 0) shared.hits = 0;
    barrier();
    ROLLED for (u32 lane = opaque(thread_index()); lane < ASKED_SLICES * lanes_of_slice; lane += BLOCK) {
        u32 slice = j + lane / lanes_of_slice * step, mask = 0;
        if (slice >= shared.slices) break;
        Eight<f16> eight = *(const Eight<f16> *)(const f16 *)(shared.groups + slice * GROUPS + lane % lanes_of_slice * 8);
        float threshold = threshold_in(drawn, slice);
        UNROLL for (u32 c = 0; c < 8; c++) mask |= (u32)(widen(eight.x[c]) > threshold) << c;
        if (!mask) continue;
        u32 at = atomic_add(&shared.hits, count_bits(mask));
        ROLLED for (; mask; mask &= mask - 1, at++) sums_of(shared).groups[at] = (u16)(lane * 8 + lowest_bit(mask));
    }
    barrier();
}

// Fours of tokens that a lane waits for together.
#define FOURS_ASKED 2u

// Reads the listed groups and gives `use` each lane's tokens, four at a time, with the id of their first.
template <typename T, typename F>
DEVICE void read_listed(const Shared &shared, const u16 *groups, u32 j, u32 step, F use) {
    u32 mine = opaque(thread_index()), count = shared.hits;
    // Four lanes read a group.
    ROLLED for (u32 start = mine / 4; start < count; start += FOURS_ASKED * BLOCK / 4) {
        Four<T> four[FOURS_ASKED];
        u32 ids[FOURS_ASKED];
        UNROLL for (u32 q = 0; q < FOURS_ASKED; q++) {
            u32 i = start + q * BLOCK / 4, group = groups[i < count ? i : start];
            ids[q] = (j + group / GROUPS * step) * SLICE + group % GROUPS * GROUP + mine % 4 * 4;
        }
        read_fours<FOURS_ASKED>((const T *)shared.logits, shared.vocab, ids, four);
        UNROLL for (u32 q = 0; q < FOURS_ASKED; q++) {
            if (start + q * BLOCK / 4 >= count) break;
            use(four[q], ids[q]);
        }
    }
}

// Leaves in sums.about how many tokens each wave finds above the tries that are asked for, in this block's part of the row, and their shares of the
// whole.
template <typename T>
DEVICE void sum_asked(Shared &shared) {
    u32 step = shared.parts;
    Sums &sums = sums_of(shared);
    ROLLED for (u32 weigh = BY_COUNT; weigh <= BY_MASS; weigh++) {
        u32 tries = uniform(shared.tried.words) >> weigh * TRIES & EACH_TRY;
        if (!tries) continue;
        const Try *drawn = shared.tried.drawn;
        u32 mine = opaque(thread_index()) % TRIES;
        u64 lowest = ~wave_max(tries >> mine & 1 ? ~drawn[mine].key : 0);
        Drawn down_to = {key_id(lowest), key_logit(lowest), key_previous(lowest)};
        ROLLED for (u32 j = shared.part; j < shared.slices; j += ASKED_SLICES * step) {
            float above[TRIES] = {};
            list_reached(shared, down_to, j, step);
            read_listed<T>(shared, sums.groups, j, step, [&](const Four<T> &four, u32 first) {
                float z[4], weights[4];
                UNROLL for (u32 c = 0; c < 4; c++) {
                    z[c] = token_of(four, c);
                    weights[c] = weigh == BY_COUNT ? 1.0f : weight_about(about_of(shared), z[c]);
                }
                UNROLL for (u32 d = 0; d < TRIES; d++) {
                    if (!(tries >> d & 1)) continue;
                    // Read where it is wanted: registers are short.
                    float threshold = threshold_of_four(drawn_of(drawn[opaque(d)]), first), found = 0.0f;
                    UNROLL for (u32 c = 0; c < 4; c++) found += z[c] > threshold ? weights[c] : 0.0f;
                    above[d] += found;
                }
            });
            UNROLL for (u32 d = 0; d < TRIES; d++) {
                if (!(tries >> d & 1)) continue;
                u32 sum = wave_sum(weigh == BY_COUNT ? (u32)above[d] : share_about(above[d], shared.whole));
                u32 &all = sums.about[weigh * TRIES + d][wave_index()];
                if (lane_index() == 0) all = j == shared.part ? sum : all + sum;
            }
        }
    }
}

// The same by integers, in all of the row: for the few tries whose mass is within the margin of the limit.
template <typename T>
DEVICE void sum_exactly(Shared &shared) {
    Sums &sums = sums_of(shared);
    ROLLED for (u32 tries = uniform(shared.tried.words) >> BY_MASS * TRIES; tries; tries &= tries - 1) {
        u32 d = lowest_bit(tries);
        Drawn drawn = drawn_of(shared.tried.drawn[d]);
        u64 sum = 0;
        ROLLED for (u32 j = 0; j < shared.slices; j += ASKED_SLICES) {
            list_reached(shared, drawn, j, 1);
            read_listed<T>(shared, sums.groups, j, 1, [&](const Four<T> &four, u32 first) {
                SliceScale s = scale_of(shared, first / SLICE);
                Shift shift = shift_of(s, shared.unit);
                float threshold = threshold_of_four(drawn, first);
                u32 found = 0;
                UNROLL for (u32 c = 0; c < 4; c++) {
                    float z = token_of(four, c);
                    // Where a slice reaches above a token that was drawn, it has mass.
                    found += z > threshold ? weight(s, z) >> shift.right : 0;
                }
                sum += (u64)found << shift.left;
            });
        }
        sum = wave_sum(sum);
        if (lane_index() == 0) sums.exact[d][wave_index()] = sum;
    }
    barrier();
}

// What is `above` the tries that are asked for, or within the margin of that: leaves the first that is kept, and what is to be summed exactly of those
// before it. One wave's, a lane for each word.
DEVICE void judge_tries(Shared &shared, u64 above, u64 margin) {
    u32 lane = opaque(thread_index()) % WAVE, weigh = lane / TRIES % 2;
    u32 words = uniform(shared.tried.words), tries = (words | words >> TRIES) & EACH_TRY, kept = uniform(shared.tried.kept);
    bool asked = lane < WORDS && words >> lane % WORDS & 1;
    u64 limit = limit_of(shared.params, shared.whole, weigh);
    if (weigh == BY_COUNT) margin = 0;
    above += shared.tried.drawn[lane % TRIES].tied[weigh];
    u32 over = (u32)vote(asked && above >= limit + margin), unsure = (u32)vote(asked && above < limit + margin && above + margin >= limit);
    over = (over | over >> TRIES) & EACH_TRY;
    unsure &= ~(over | over << TRIES);
    kept = lowest_bit((u64)(tries & ~(over | unsure | unsure >> TRIES)) | 1u << kept);
    u32 before = (1u << kept) - 1;
    wave_barrier();  // the votes are one already, but do not promise it
    if (lane == 0) {
        shared.tried.kept = kept;
        shared.tried.words = unsure & (before | before << TRIES);
    }
}

// Parts of a row for so many blocks: no more than have a slice for each wave.
DEVICE u32 parts_of_row(u32 slices, u32 blocks) {
    u32 most = (slices + WAVES - 1) / WAVES;
    return blocks < 1 ? 1 : blocks < most ? blocks : most;
}

// Adds what this block has found to what the row's others have, of whom nobody waits for another: who is last knows all. One wave's, a lane for each
// word, of which one counts the blocks in the half that it leaves.
DEVICE void conclude(Shared &shared) {
    const Sums &sums = sums_of(shared);
    u32 words = uniform(shared.tried.words), parts = uniform(shared.parts), counted = lowest_bit(words);
    u32 lane = opaque(thread_index()) % WAVE, mine = lane % WORDS, found = 0;
    bool asked = lane < WORDS && words >> mine & 1, last = parts == 1;
    ROLLED for (u32 wave = lane / WORDS; wave < WAVES; wave += WAVE / WORDS) found += words >> mine & 1 ? sums.about[mine][wave] : 0;
    ROLLED for (u32 mask = WORDS; mask < WAVE; mask *= 2) found += shuffle_xor(found, mask);
    if (parts > 1) {
        GLOBAL u64 *all = shared.wide->tally.above[0];
        bool several = (words & (words - 1)) != 0;
        u64 others = 0;
        // Who counts comes after these have arrived, as their answers show.
        if (several) others = vote(asked && lane != counted && atomic_add_on_device((u64 *)all + mine, (u64)found) >> 63);
        if (lane == counted) {
            u64 before = atomic_add_on_device((u64 *)all + mine, found | (u64)(others == 0) << 32);
            last = before >> 32 == parts - 1;
            found += (u32)before;
        }
        last = vote(last) != 0;
        if (last && several && asked && lane != counted) found = (u32)atomic_add_on_device((u64 *)all + mine, (u64)0);
    }
    if (lane == 0) shared.last = last;
    if (!last) return;
    judge_tries(shared, lane / TRIES % 2 == BY_COUNT ? found : mass_of_share(found, shared.whole), margin_of(shared));
}

// What is left to do with a row: nothing; to ask for what is above its tries; to search for what is kept, after tries or without.
enum Next { DONE, ASK, SEARCH_AFTER_TRIES, SEARCH };

// Where no try is in doubt.
DEVICE Next draw_kept(Shared &shared) {
    u32 kept = uniform(shared.tried.kept);
    if (kept == TRIES) return SEARCH_AFTER_TRIES;
    write_token(shared, shared.tried.drawn[kept].id);
    return DONE;
}

// Asks for what is above the tries, and draws the first that is kept. Of the row's blocks, the last to add up its slices goes on by itself.
template <typename T>
DEVICE Next draw_asked(Row<T> &row) {
    Shared &shared = *row.shared;
    sum_asked<T>(shared);
    barrier();
    if (wave_index() == 0) conclude(shared);
    barrier();
    if (!uniform(shared.last)) return DONE;
    if (uniform(shared.tried.words) != 0) {
        sum_exactly<T>(shared);
        if (wave_index() == 0) {
            u32 mine = opaque(thread_index()) % TRIES;
            u64 above = 0;
            ROLLED for (u32 wave = 0; wave < WAVES; wave++) above += sums_of(shared).exact[mine][wave];
            judge_tries(shared, above, 0);
        }
        barrier();
    }
    return draw_kept(shared);
}

// Who asks: the row's blocks, at once; or, where rows are many, another launch, in which blocks are divided by the rows that have something to ask.
// Where they are more, tries are bounded by groups before.
enum Stage { BY_ITS_BLOCKS, TO_BE_ASKED, TO_BE_BOUNDED, ASKED };

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
DEVICE Next draw_tries(Row<T> &row, const Ruler &ruler, u32 stage) {
    Shared &shared = *row.shared;
    u64 whole = sum_slices(row, ruler, true);
    draw_by_slices<T>(shared, row.block, shared.random, TRIES, whole, true, 0, shared.tried.drawn);
    bound_tries(shared, row.flags);
    bool by_groups = stage == TO_BE_BOUNDED && !(row.flags & TOP_K);
    if (by_groups && uniform(shared.tried.words != 0 && halves_tell(shared))) bound_by_groups(shared, row.block);
    if (uniform(shared.tried.words) == 0) return shared.part ? DONE : draw_kept(shared);
    if (stage == BY_ITS_BLOCKS) return ASK;
    leave_to_be_asked(shared);
    return DONE;
}
