// Tries: tokens drawn from all, each of which is kept if little enough comes before it in the order. The slices' masses often tell at once that it
// is; otherwise it takes one look at the groups whose largest logit is above it.
#pragma once
#include "draw.h"
#include "look.h"

// What may refuse a try, beside min-p: the number of tokens before it, or their mass.
DEVICE bool is_judged(const RowParams &p, u32 vocab, u32 weigh) { return weigh == BY_COUNT ? has_top_k(p, vocab) : has_top_p(p); }

// What is above a token that is kept is less than this.
DEVICE u64 limit_of(const RowParams &p, u64 whole, u32 weigh) { return weigh == BY_COUNT ? p.top_k : nucleus_limit(p.top_p, whole); }

// For each of `n` tries, what the slices hold that reach above it, but the try itself: no more is above it.
template <u32 n>
DEVICE void bound_tries(Seen &seen, Block &b, const u64 *shares, u32 weigh) {
    u64 sums[n] = {};
    ROLLED for (u32 j = thread_index(); j < seen.slices; j += BLOCK) {
        u64 all = weigh == BY_COUNT ? SLICE : seen.slices <= BLOCK ? shares[j] : share_of(seen, j);
        float largest = seen.largest[j];
        UNROLL for (u32 d = 0; d < n; d++) sums[d] += largest > cut_of(seen.drawn[d].key, j).threshold ? all : 0;
    }
    block_sums<n>(b, sums);
    if (thread_index() == 0)
        UNROLL for (u32 d = 0; d < n; d++) seen.most_above[weigh][d] = sums[d] - seen.drawn[d].own[weigh];
}

// What is above the try in the slices from `first` to before `last`.
template <typename T>
DEVICE u64 sum_above(Shared &seen, Block &b, const Try &drawn, Weigh weigh, u32 first, u32 last) {
    u16 *hits = (u16 *)seen.list.keys;
    static_assert(CHUNK * GROUPS * 2 <= CAPACITY * 8, "room for the groups");
    u64 sum = 0;
    ROLLED for (u32 begin = first; begin < last; begin += CHUNK) {
        list_groups(seen, hits, begin, last - begin < CHUNK ? last - begin : CHUNK, drawn.key);
        u32 count = uniform(seen.hits);
        ROLLED for (u32 start = wave_index() * WAVE; start < count; start += BLOCK) {
            u32 i = start + opaque(thread_index()) % WAVE;
            if (i >= count) continue;
            Hit hit = hit_of(hits, begin, true, i);
            SliceScale s = scale_of(seen, hit.j);
            Shift shift = shift_of(s, seen.unit);
            u32 found = 0;
            ROLLED for (u32 start = 0; start < GROUP; start += 4 * FOURS_AT_ONCE) {
                Four<T> four[FOURS_AT_ONCE];
                u32 ids[FOURS_AT_ONCE];
                UNROLL for (u32 q = 0; q < FOURS_AT_ONCE; q++) ids[q] = id_of(hit.id, hit.apart, start + 4 * q);
                read_fours<FOURS_AT_ONCE>((const T *)seen.logits, seen.vocab, ids, four);
                UNROLL for (u32 q = 0; q < FOURS_AT_ONCE; q++) {
                    float threshold = ids[q] + 4 <= drawn.id ? drawn.previous : drawn.logit;
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
    }
    return block_sum(b, sum);
}

// Adds what this block has found above a try to what the row's others have, of whom nobody waits for another: what is found last knows all. A
// mass is below 2^39, so what a row's tokens weigh leaves the highest bits for the number of blocks.
DEVICE bool is_last(Shared &shared, Weigh weigh, u32 blocks, u64 *sum) {
    if (thread_index() == 0) {
        u32 bits = 40 + highest_bit(shared.vocab);
        u64 before = atomic_add_on_device((u64 *)&shared.wide->tally.above[weigh][0], *sum | (u64)1 << bits);
        shared.is_last = before >> bits == blocks - 1;
        shared.above_try = (before & (((u64)1 << bits) - 1)) + *sum;
    }
    barrier();
    *sum = shared.above_try;
    return uniform(shared.is_last);
}

// Who asks for what is above tries that are unsure: the row's blocks, at once; or `above`, between two launches of `try`, of which the first
// leaves them and the second has the answers.
enum Stage { AT_ONCE_BY_BLOCKS, TO_BE_ASKED, ASKED };

// Draws from all, if there is no filter; otherwise the first try that is kept. False if none is. Of a row's blocks, those that are not needed, or not
// the last, have nothing more to do; nor has anybody, while tries are to be asked for.
template <typename T>
DEVICE bool draw_tries(Row<T> &row, u32 blocks, u32 stage) {
    Shared &shared = *row.shared;
    const RowParams &p = shared.params;
    u32 part = block_index_y(), t = thread_index(), unsure = 0, sure = INVALID_TOKEN;
    bool tries = has_tries(p, shared.vocab);
    u64 *shares = shares_of(row);
    if (t == 0) shared.refused = 0;
    ROLLED for (u32 d = 0; d < TRIES; d++) {
        const Try &drawn = shared.drawn[d];
        if (d == 0 || (d == 1 && stage == AT_ONCE_BY_BLOCKS)) {
            // Where rows are few, the first is drawn alone, and the others only if it is not enough.
            u32 draws = d ? TRIES - 1 : stage == TO_BE_ASKED && tries ? TRIES : 1;
            draw_by_slices<T>(shared, row.block, shared.random + d, draws, true, shares, 0, shared.drawn + d);
            if (!tries) {
                write_token(shared, drawn.id);
                return true;
            }
            ROLLED for (u32 weigh = BY_COUNT; weigh <= BY_MASS; weigh++) {
                if (!is_judged(p, shared.vocab, weigh)) continue;
                if (uniform(draws == 1))
                    bound_tries<1>(shared, row.block, shares, weigh);
                else
                    bound_tries<TRIES>(shared, row.block, shares, weigh);
            }
            barrier();
        }
        bool kept = uniform(drawn.key > shared.least), asks = false;
        ROLLED for (u32 weigh = BY_COUNT; weigh <= BY_MASS; weigh++) {
            u64 limit = limit_of(p, shared.whole, weigh);
            if (!kept || !is_judged(p, shared.vocab, weigh) || uniform(shared.most_above[weigh][d] < limit)) continue;
            asks = true;
            if (stage == TO_BE_ASKED) continue;
            // All of the row's blocks have come here together. One goes on.
            u32 each = (shared.slices + blocks - 1) / blocks, first = part * each, last = first + each;
            u64 sum = sum_above<T>(shared, row.block, drawn, (Weigh)weigh, first, last < shared.slices ? last : shared.slices);
            if (blocks > 1 && !is_last(shared, (Weigh)weigh, blocks, &sum)) return true;
            blocks = 1;
            part = 0;
            kept = uniform(sum + drawn.tied[weigh] < limit);
        }
        if (stage == TO_BE_ASKED && kept && asks) {
            if (t < sizeof(Try) / 8) ((GLOBAL u64 *)(shared.wide->tried.unsure + unsure))[t] = ((const u64 *)&drawn)[t];
            unsure++;
        } else if (kept) {
            sure = drawn.id;
            break;
        } else if (t == 0 && drawn.key > shared.refused) {
            shared.refused = drawn.key;
        }
    }
    if (part) return true;
    if (unsure == 0) {
        if (sure != INVALID_TOKEN) write_token(shared, sure);
        return sure != INVALID_TOKEN;
    }
    if (t == 0) {
        GLOBAL Wide *wide = shared.wide;
        wide->tried.whole = shared.whole;
        wide->tried.refused = shared.refused;
        wide->tried.sure = sure;
        wide->state.top = shared.top;
        wide->state.least = shared.least;
        wide->tally.tried = unsure;
        u64 *all = (u64 *)wide - (u64)block_index() * WIDE_WORDS;
        wide_of(all, atomic_add_on_device((u32 *)&wide_of(all, 0)->tally.queued, 1))->tried.queue = block_index();
    }
    return true;
}

// After unsure tries have been asked for, writes the first that is kept. False if none is.
DEVICE bool write_asked(const GLOBAL Wide *wide, const RowParams &p, u32 vocab, u32 *id, u64 *position) {
    u64 whole = wide->tried.whole, least = wide->state.least;
    u32 tries = wide->tally.tried, kept = wide->tried.sure;
    ROLLED for (u32 d = 0; d < tries; d++) {
        u64 key = wide->tried.unsure[d].key;
        bool passes = key > least;
        ROLLED for (u32 weigh = BY_COUNT; weigh <= BY_MASS; weigh++) {
            if (!is_judged(p, vocab, weigh)) continue;
            passes = passes && wide->tally.above[weigh][d] + wide->tried.unsure[d].tied[weigh] < limit_of(p, whole, weigh);
        }
        if (!uniform(passes)) continue;
        kept = key_id(key);
        break;
    }
    if (uniform(kept == INVALID_TOKEN)) return false;
    if (thread_index() == 0) {
        *id = kept;
        *position += 1;
    }
    return true;
}

// The highest place that is known not to be kept then.
DEVICE u64 refused_then(const GLOBAL Wide *wide) {
    u64 highest = wide->tried.refused;
    ROLLED for (u32 d = 0; d < wide->tally.tried; d++) highest = wide->tried.unsure[d].key > highest ? wide->tried.unsure[d].key : highest;
    return highest;
}
