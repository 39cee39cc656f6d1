// What is above tries: how many tokens come before each in the order, or what they weigh. Groups whose largest logit is above the lowest of the tries are
// listed and read again; floats sum what is above each, which several blocks of a row share in. Where that is too near to the limit to tell, the block
// that is last sums it by integers.
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

// What the waves of a block have found: at first what the slices tell of each try; then what is above those that are asked for, as counts and shares and,
// where these do not tell, exactly. And the groups to read for it.
struct Sums {
    u64 most[TRIES];
    u32 about[WORDS][WAVES];
    u64 exact[TRIES][WAVES];
    u16 groups[ASKED_SLICES * GROUPS];
};
static_assert(sizeof(Sums) <= CAPACITY * 8, "room where keys will be");

DEVICE Sums &sums_of(Shared &shared) { return *(Sums *)shared.list.keys; }

// Floats and the hardware's exp2 tell what is above a try to within a margin. In parts of the whole: 2^-19 of each weight; 2^-16.7 where a lane adds up
// 160 fours; 2^-17 where 2^14 lanes round to a share, and 2^-18 where 2^8 blocks round to fewer bits; and of the integers, half a unit of the slice for
// each of its 512 tokens, 2^-18.5, and a unit of the row for each of 2^18 tokens, 2^-19.5. Together that is less than 2^-15. A larger vocabulary has up
// to 2^17 lanes and 2^24 tokens: less than 2^-12. What slices tell is less off: 2^-15.5 where 64 lanes drop PLACED_BITS of a slice's mass, which is 2^26.5
// or more, and 2^-21 where 2^9 slices drop what is less than a share.
DEVICE u64 margin_of(const Seen &seen) { return seen.whole >> MARGIN_BITS << (seen.vocab > 1u << 18 ? 3 : 0); }

// The weight of a logit where the row's largest weighs about 1.
struct About {
    float base, scale, largest;
};

// In registers: a compiler that is short of them would read it again for each token.
DEVICE float in_register(float x) { return float_of(opaque(bits_of(x))); }
DEVICE About about_of(const Seen &seen) {
    return {in_register(seen.scale.base), in_register(seen.scale.scale), in_register(MAGIC + FRACTION - float_of(seen.unit))};
}
DEVICE float orders_about(About about, float logit) { return fma_f32(logit - about.base, about.scale, -about.largest); }
DEVICE float weight_about(About about, float logit) { return exp2_about(orders_about(about, logit)); }

// Sums of these as integers of so many bits, shares: in a unit of which the whole has less than 2^31.
#define SHARE_BITS 31

DEVICE u32 share_unit(u64 whole) { return highest_bit(whole) + 1 - SHARE_BITS; }
// Of a weight of 1.
DEVICE float shares_about(u64 whole) { return float_of((127 + FRACTION + HEADROOM - share_unit(whole)) << 23); }
DEVICE u64 mass_of_share(u32 share, u64 whole) { return (u64)share << share_unit(whole); }

// Lists those groups that reach above a try, of slice `j` and each `step` further on, ASKED_SLICES of them or to the row's end. `again`, if
// there has been a list. Has barriers, one at the end.
DEVICE void list_reached(Shared &shared, Drawn drawn, u32 j, u32 step, bool again) {
    const u32 lanes_of_slice = GROUPS / 8;
    if (again) {
        // After that has been read.
        barrier();
        if (thread_index() == 0) shared.hits = 0;
        barrier();
    }
    ROLLED for (u32 lane = opaque(thread_index()); lane < ASKED_SLICES * lanes_of_slice; lane += BLOCK) {
        u32 slice = j + lane / lanes_of_slice * step, mask = 0;
        if (slice >= shared.slices) break;
        Drops<8> eight = drops_of<8>(shared.groups, slice * lanes_of_slice + lane % lanes_of_slice);
        u32 above = drops_above(shared.largest[slice], threshold_in(drawn, slice));
        UNROLL for (u32 c = 0; c < 8; c++) mask |= (u32)(eight.drops[c] < above) << c;
        if (!mask) continue;
        u32 at = atomic_add(&shared.hits, count_bits(mask));
        UNROLL for (u32 c = 0; c < 8; c++) {
            if (mask >> c & 1) sums_of(shared).groups[at] = (u16)(lane * 8 + c);
            at += mask >> c & 1;
        }
    }
    barrier();
}

// Fours of tokens that a lane waits for together.
#define FOURS_ASKED 3u

// Reads the listed groups and gives `use` each lane's tokens, FOURS_ASKED fours at a time or fewer, with the ids of their first.
template <typename T, typename F>
DEVICE void read_listed(Shared &shared, u32 j, u32 step, F use) {
    const u16 *groups = sums_of(shared).groups;
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
        use(four, ids, (count - start + BLOCK / 4 - 1) / (BLOCK / 4));
    }
}

// Leaves in sums.about how many tokens each wave finds above the tries that are asked for, in this block's part of the row, and their shares of the
// whole.
template <typename T>
DEVICE void sum_asked(Shared &shared) {
    u32 step = shared.parts;
    Sums &sums = sums_of(shared);
    bool again = false;
    ROLLED for (u32 weigh = BY_COUNT; weigh <= BY_MASS; weigh++) {
        u32 tries = uniform(shared.tried.words) >> weigh * TRIES & EACH_TRY;
        if (!tries) continue;
        const Try *drawn = shared.tried.drawn;
        u64 lowest = ~(u64)0;
        UNROLL for (u32 d = 0; d < TRIES; d++) {
            u64 key = drawn[d].key;
            lowest = tries >> d & 1 && key < lowest ? key : lowest;
        }
        About about = about_of(shared);
        float shares = in_register(shares_about(shared.whole));
        if (weigh == BY_COUNT) {
            // All weigh 1.
            about = {0.0f, 0.0f, 0.0f};
            shares = 1.0f;
        }
        Drawn down_to = {key_id(lowest), key_logit(lowest), key_previous(lowest)};
        ROLLED for (u32 j = shared.part; j < shared.slices; j += ASKED_SLICES * step) {
            float above[TRIES] = {};
            list_reached(shared, down_to, j, step, again);
            again = true;
            read_listed<T>(shared, j, step, [&](const Four<T> *four, const u32 *ids, u32 fours) {
                float weights[FOURS_ASKED][4];
                UNROLL for (u32 q = 0; q < FOURS_ASKED; q++) {
                    if (q >= fours) break;
                    UNROLL for (u32 c = 0; c < 4; c++) weights[q][c] = weight_about(about, token_of(four[q], c));
                }
                UNROLL for (u32 d = 0; d < TRIES; d++) {
                    if (!(tries >> d & 1)) continue;
                    // Read where it is wanted: registers are short.
                    Drawn place = drawn_of(drawn[opaque(d)]);
                    UNROLL for (u32 q = 0; q < FOURS_ASKED; q++) {
                        if (q >= fours) break;
                        float threshold = threshold_of_four(place, ids[q]), found = token_of(four[q], 0) > threshold ? weights[q][0] : 0.0f;
                        UNROLL for (u32 c = 1; c < 4; c++) add_if_above(found, token_of(four[q], c), threshold, weights[q][c]);
                        above[d] += found;
                    }
                }
            });
            // A lane has the sum above each.
            u32 mine = lane_index() % TRIES, sum = 0;
            UNROLL for (u32 d = 0; d < TRIES; d++) {
                u32 all = wave_sum(round_u32(above[d] * shares));
                sum = mine == d ? all : sum;
            }
            u32 &all = sums.about[weigh * TRIES + mine][wave_index()];
            if (lane_index() < TRIES) all = j == shared.part ? sum : all + sum;
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
            list_reached(shared, drawn, j, 1, true);
            read_listed<T>(shared, j, 1, [&](const Four<T> *four, const u32 *ids, u32 fours) {
                UNROLL for (u32 q = 0; q < FOURS_ASKED; q++) {
                    if (q >= fours) break;
                    SliceScale s = scale_of(shared, ids[q] / SLICE);
                    Shift shift = shift_of(s, shared.unit);
                    float threshold = threshold_of_four(drawn, ids[q]);
                    u32 found = 0;
                    UNROLL for (u32 c = 0; c < 4; c++) {
                        float z = token_of(four[q], c);
                        // Where a slice reaches above a token that was drawn, it has mass.
                        found += z > threshold ? weight(s, z) >> shift.right : 0;
                    }
                    sum += (u64)found << shift.left;
                }
            });
        }
        sum = wave_sum(sum);
        if (lane_index() == 0) sums.exact[d][wave_index()] = sum;
    }
    barrier();
}

// What the waves have found, of the word that a lane has.
DEVICE u32 sum_of_waves(const Sums &sums) {
    u32 lane = opaque(thread_index()) % WAVE, found = 0;
    UNROLL for (u32 wave = lane / WORDS; wave < WAVES; wave += WAVE / WORDS) found += sums.about[lane % WORDS][wave];
    UNROLL for (u32 mask = WORDS; mask < WAVE; mask *= 2) found += shuffle_xor(found, mask);
    return found;
}

// A lane's limit, for the try and the sum of which it has the word.
DEVICE u64 limit_of_lane(const Shared &shared) {
    u32 lane = opaque(thread_index()) % WAVE, weigh = lane / TRIES % 2;
    u64 limit = limit_of(shared.params, shared.whole, weigh), tied = shared.tried.drawn[lane % TRIES].tied[weigh];
    return limit > tied ? limit - tied : 0;
}

// Leaves the first try without a doubt: of those that are sure to be kept, or `kept`, which is known; and the words that are in doubt of those before it.
// One wave's.
DEVICE void settle(Shared &shared, u32 sure, u32 words, u32 kept) {
    kept = lowest_bit((u64)sure | 1u << kept);
    u32 before = (1u << kept) - 1;
    wave_barrier();  // the votes are one already, but do not promise it
    if (lane_index() == 0) {
        shared.tried.kept = kept;
        shared.tried.words = words & (before | before << TRIES);
    }
}

// What is `above` the tries that are asked for, or within the margin of that: leaves the first that is kept, and what is to be summed exactly of those
// before it. One wave's, a lane for each word.
DEVICE void judge_tries(Shared &shared, u64 above, u64 limit, u64 margin) {
    u32 lane = opaque(thread_index()) % WAVE, weigh = lane / TRIES % 2;
    u32 words = uniform(shared.tried.words), tries = (words | words >> TRIES) & EACH_TRY, kept = uniform(shared.tried.kept);
    bool asked = lane < WORDS && words >> lane % WORDS & 1;
    if (weigh == BY_COUNT) margin = 0;
    u32 over = (u32)vote(asked && above >= limit + margin), unsure = (u32)vote(asked && above < limit + margin && above + margin >= limit);
    over = (over | over >> TRIES) & EACH_TRY;
    unsure &= ~(over | over << TRIES);
    settle(shared, tries & ~(over | unsure | unsure >> TRIES), unsure, kept);
}

// Parts of a row for so many blocks: of 8 slices or more, and few enough for the margin.
#define MOST_PARTS 256u
DEVICE u32 parts_of_row(u32 slices, u32 blocks) {
    u32 most = (slices + 7) / 8;
    most = most < MOST_PARTS ? most : MOST_PARTS;
    return blocks < 1 ? 1 : blocks < most ? blocks : most;
}

// Two words go together, with the number of blocks above them, in one of 64 bits: counts as they are, shares with fewer bits, of which the whole has less
// than 2^26.
#define TOGETHER_BITS 27u
#define DROPPED (SHARE_BITS + 1 - TOGETHER_BITS)
static_assert(MOST_PARTS < 1u << (64 - 2 * TOGETHER_BITS), "the number of blocks fits");

DEVICE u32 narrow_share(u32 share) { return (share + (1u << DROPPED) / 2) >> DROPPED; }

// Adds what this block has found to what the row's others have, of whom nobody waits for another: who is last knows all. One wave's, a lane for each
// word. The first two words say how many blocks have been there; more, which are rare, have to arrive before, and are asked for again.
DEVICE void conclude(Shared &shared) {
    const Sums &sums = sums_of(shared);
    u32 words = uniform(shared.tried.words), parts = uniform(shared.parts), more = words & (words - 1);
    u32 first = lowest_bit(words), second = more ? lowest_bit(more) : WAVE;
    more &= more - 1;
    u32 lane = opaque(thread_index()) % WAVE, mine = lane % WORDS, found = sum_of_waves(sums);
    bool asked = lane < WORDS && words >> mine & 1, counts = mine / TRIES == BY_COUNT, last = parts == 1;
    u64 limit;
    if (parts > 1) {
        GLOBAL u64 *all = shared.wide->tally.above[0];
        bool alone = asked && more >> mine & 1;
        u64 others = 0;
        // Who counts comes after these have arrived, as their answers show.
        if (more) others = vote(alone && atomic_add_on_device((u64 *)all + mine, (u64)found) >> 63);
        u32 narrow = counts ? found : narrow_share(found), high = wave_max(lane == second ? narrow : 0);
        u64 both = narrow | (u64)high << TOGETHER_BITS, before = 0;
        if (lane == first) before = atomic_add_on_device((u64 *)all + mine, both | (u64)(others == 0) << 2 * TOGETHER_BITS);
        // While that is waited for.
        limit = limit_of_lane(shared);
        limit = (u64)opaque((u32)(limit >> 32)) << 32 | opaque((u32)limit);
        last = vote(lane == first && before >> 2 * TOGETHER_BITS == parts - 1) != 0;
        if (last) {
            const u32 bits = (1u << TOGETHER_BITS) - 1;
            both += before;
            high = wave_max(lane == first ? (u32)(both >> TOGETHER_BITS) & bits : 0);
            narrow = lane == first ? (u32)both & bits : high;
            found = counts ? narrow : narrow << DROPPED;
            if (alone) found = (u32)atomic_add_on_device((u64 *)all + mine, (u64)0);
        }
    } else {
        limit = limit_of_lane(shared);
    }
    if (lane == 0) shared.last = last;
    if (!last) return;
    judge_tries(shared, counts ? found : mass_of_share(found, shared.whole), limit, margin_of(shared));
}
