// Tries: tokens drawn from all, each of which is kept if little enough comes before it in the order. The slices' masses often tell at once that it
// is; otherwise it takes one look at the groups whose largest logit is above it.
#pragma once
#include "look.h"

// What may refuse a try, beside min-p: the number of tokens before it, or their mass.
DEVICE bool is_judged(const RowParams &p, u32 vocab, u32 weigh) { return weigh == BY_COUNT ? has_top_k(p, vocab) : has_top_p(p); }

// What is above a token that is kept is less than this.
DEVICE u64 limit_of(const Seen &seen, u32 weigh) { return weigh == BY_COUNT ? seen.params.top_k : nucleus_limit(seen.params.top_p, seen.whole); }

// What the slices hold that reach above the try, but the try itself: no more is above it.
DEVICE u64 most_above(const Seen &seen, Block &b, const u64 *shares, u32 weigh) {
    u64 key = seen.drawn.key, sum = 0;
    ROLLED for (u32 j = thread_index(); j < seen.slices; j += BLOCK)
        if (seen.largest[j] > cut_of(key, j).threshold) sum += weigh == BY_COUNT ? SLICE : seen.slices <= BLOCK ? shares[j] : share_of(seen, j);
    return block_sum(b, sum) - seen.drawn.own[weigh];
}

// Fours of its group that a lane reads at once.
#define TRIED_AT_ONCE FOURS_AT_ONCE

// What is above a try, or a place, in the slices from `first` to before `last`. False if more groups than `most` would have to be read.
template <typename T>
DEVICE bool sum_above(Seen &seen, Block &b, const Try &place, u16 *hits, Weigh weigh, u32 first, u32 last, u32 most, u64 *all) {
    u64 sum = 0;
    ROLLED for (u32 begin = first; begin < last; begin += CHUNK) {
        list_groups(seen, hits, begin, last - begin < CHUNK ? last - begin : CHUNK, place.key);
        u32 count = uniform(seen.hits);
        ROLLED for (u32 start = wave_index() * WAVE; start < count && count <= most; start += BLOCK) {
            u32 i = start + opaque(thread_index()) % WAVE;
            if (i >= count) continue;
            Hit hit = hit_of(hits, begin, true, i);
            SliceScale s = scale_of(seen, hit.j);
            Shift shift = shift_of(s, seen.unit);
            u32 found = 0;
            ROLLED for (u32 start = 0; start < GROUP; start += 4 * TRIED_AT_ONCE) {
                Four<T> four[TRIED_AT_ONCE];
                u32 ids[TRIED_AT_ONCE];
                UNROLL for (u32 q = 0; q < TRIED_AT_ONCE; q++) ids[q] = id_of(hit.id, hit.apart, start + 4 * q);
                read_fours<TRIED_AT_ONCE>((const T *)seen.logits, seen.vocab, ids, four);
                UNROLL for (u32 q = 0; q < TRIED_AT_ONCE; q++) {
                    float threshold = ids[q] + 4 <= place.id ? place.previous : place.logit;
                    UNROLL for (u32 c = 0; c < 4; c++) {
                        float z = widen(four[q].x[c]);
                        u32 w = weigh == BY_COUNT ? 1 : weight(s, z) >> shift.right;
                        found += z > threshold ? w : 0;
                    }
                }
            }
            sum += weigh == BY_COUNT ? found : s.some ? (u64)found << shift.left : 0;
        }
        barrier();
        if (count > most) return false;
    }
    *all = block_sum(b, sum);
    return true;
}

// Where more groups than MANY are above a try, it may well be far below what is kept. So the sum is taken down to places above it first, at
// so many parts of the way from the largest logit: if it is too much there, the try is refused.
#define MANY 1024u
#define PARTS 4u

// Whether little enough is above the try. One block's.
template <typename T>
DEVICE bool is_try_kept(Seen &seen, Block &b, u16 *hits, Weigh weigh) {
    u64 sum, limit = limit_of(seen, weigh);
    ROLLED for (u32 part = 1;; part++) {
        bool whole = part == 1 || part == PARTS;
        if (!whole) {
            if (thread_index() == 0) {
                float most = key_logit(seen.top), logit = most - (most - seen.drawn.logit) * ((float)part / PARTS);
                seen.above_drawn = {key_of(logit, 0), logit, logit, 0, {0, 0}, {0, 0}};
            }
            barrier();
        }
        const Try &place = whole ? seen.drawn : seen.above_drawn;
        if (!sum_above<T>(seen, b, place, hits, weigh, 0, seen.slices, part == 1 ? MANY : ~0u, &sum)) continue;
        if (whole) return sum + seen.drawn.tied[weigh] < limit;
        if (uniform(sum >= limit)) return false;
    }
}

// Adds what this block has found above a try to what the row's others have, of whom nobody waits for another: what is found last knows all. A
// mass is below 2^39, so what a row's tokens weigh leaves the highest bits for the number of blocks.
DEVICE u32 bits_of_sum(u32 vocab) { return 40 + highest_bit(vocab); }
DEVICE bool is_last(Shared &shared, u32 blocks, u64 *sum) {
    if (thread_index() == 0) {
        u32 bits = bits_of_sum(shared.vocab);
        u64 before = atomic_add_on_device((u64 *)&shared.wide->tally.above_try, *sum | (u64)1 << bits);
        shared.is_last = before >> bits == blocks - 1;
        shared.above_try = (before & (((u64)1 << bits) - 1)) + *sum;
    }
    barrier();
    *sum = shared.above_try;
    return uniform(shared.is_last);
}
