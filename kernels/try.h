// Tries: tokens drawn from all, each of which is kept if little enough comes before it in the order. To find that out takes one look at the
// groups whose largest logit is above it.
#pragma once
#include "look.h"

// What may refuse a try, beside min-p: the number of tokens before it, or their mass.
DEVICE bool is_judged(const RowParams &p, u32 vocab, u32 weigh) { return weigh == BY_COUNT ? has_top_k(p, vocab) : has_top_p(p); }

// Fours of its group that a lane reads at once: registers are short.
#define TRIED_AT_ONCE (WAVE == 64 ? 1u : 2u)

// Counts or weighs, of 16 tokens, those above each of `n` tries.
template <typename T, u32 n, u32 at_once>
DEVICE void add_above(const Seen &seen, const Try *tries, Hit hit, SliceScale s, Shift shift, Weigh weigh, u64 *sums) {
    u32 found[n] = {};
    ROLLED for (u32 start = 0; start < GROUP; start += 4 * at_once) {
        Four<T> four[at_once];
        u32 ids[at_once];
        UNROLL for (u32 q = 0; q < at_once; q++) ids[q] = id_of(hit.id, hit.apart, start + 4 * q);
        read_fours<at_once>((const T *)seen.logits, seen.vocab, ids, four);
        UNROLL for (u32 q = 0; q < at_once; q++) {
            float threshold[n];
            UNROLL for (u32 d = 0; d < n; d++) threshold[d] = ids[q] + 4 <= tries[d].id ? tries[d].previous : tries[d].logit;
            UNROLL for (u32 c = 0; c < 4; c++) {
                float z = widen(four[q].x[c]);
                u32 w = weigh == BY_COUNT ? 1 : weight(s, z) >> shift.right;
                UNROLL for (u32 d = 0; d < n; d++) found[d] += z > threshold[d] ? w : 0;
            }
        }
    }
    UNROLL for (u32 d = 0; d < n; d++) sums[d] += (u64)found[d] << (weigh == BY_COUNT ? 0 : shift.left);
}

// What is above `n` tries from the `from`-th on, in the slices from `first` to before `last`: seen.tally.above, written by one thread.
template <typename T, u32 n>
DEVICE void sum_above(Seen &seen, Block &b, u16 *hits, u32 from, Weigh weigh, u32 first, u32 last) {
    u64 lowest = seen.drawn[from], sums[n] = {};
    UNROLL for (u32 d = 1; d < n; d++) lowest = seen.drawn[from + d] < lowest ? seen.drawn[from + d] : lowest;
    ROLLED for (u32 begin = first; begin < last; begin += CHUNK) {
        list_groups(seen, hits, begin, last - begin < CHUNK ? last - begin : CHUNK, lowest);
        u32 count = uniform(seen.hits);
        ROLLED for (u32 start = wave_index() * WAVE; start < count; start += BLOCK) {
            u32 i = start + opaque(thread_index()) % WAVE;
            if (i >= count) continue;
            Hit hit = hit_of(hits, begin, true, i);
            SliceScale s = scale_of(seen, hit.j);
            if (weigh == BY_COUNT || s.some)
                add_above<T, n, TRIED_AT_ONCE>(seen, seen.tries + from, hit, s, shift_of(s, seen.unit), weigh, sums);
        }
        barrier();
    }
    block_sums<n>(b, sums);
    if (thread_index() == 0)
        UNROLL for (u32 d = 0; d < n; d++) seen.tally.above[weigh][from + d] = sums[d];
}

// The highest of the first so many tries: if none of them is kept, nor is what comes after it in the order.
DEVICE u64 highest_try(const Seen &seen, u32 tries) {
    u64 highest = 0;
    ROLLED for (u32 d = 0; d < tries; d++) highest = seen.drawn[d] > highest ? seen.drawn[d] : highest;
    return highest;
}

// The first of the tries from the `from`-th to before the `to`-th that is kept, if there is one.
DEVICE bool is_one_kept(const Seen &seen, u32 from, u32 to, u32 *id) {
    const RowParams &p = seen.params;
    u64 limit = nucleus_limit(p.top_p, seen.whole);
    ROLLED for (u32 d = from; d < to; d++) {
        const u64 *tied = seen.tries[d].tied;
        bool few = !has_top_k(p, seen.vocab) || seen.tally.above[BY_COUNT][d] + tied[BY_COUNT] < p.top_k;
        bool light = !has_top_p(p) || seen.tally.above[BY_MASS][d] + tied[BY_MASS] < limit;
        *id = key_id(seen.drawn[d]);
        if (uniform(seen.drawn[d] > seen.least && few && light)) return true;
    }
    return false;
}

// Adds what this block has found above the tries to what the row's others have. For the last of them, whose that is to say, all is in shared
// memory then. Nobody waits for anybody.
DEVICE bool is_last(Shared &shared, u32 blocks) {
    if (wave_index() == 0) {
        u32 word = lane_index();
        bool mine = word < 2 * TRIES && is_judged(shared.params, shared.vocab, word / TRIES);
        u64 *above = &shared.tally.above[0][0] + word;
        GLOBAL u64 *together = &shared.wide->tally.above[0][0] + word;
        wave_barrier();
        if (mine) atomic_add_on_device((u64 *)together, *above);
        wave_barrier();
        if (word == 0) shared.is_last = count_finished((u32 *)&shared.wide->tally.finished) == blocks - 1;
        wave_barrier();
        if (mine && shared.is_last) *above = *together;
    }
    barrier();
    return uniform(shared.is_last);
}
