// Dual-pivot sampling: one token a row, by none, top-k, top-p, both, min-p.
//
// Two launches, or more. `slices`, many blocks a row, reads the logits once (read.h). From what that leaves, one of three ways:
//
// - A small top-k, or min-p: `draw`, one block a row, finds out which tokens can be kept, gathers them in shared memory (gather.h), and draws by
//   inverse CDF (rank.h, draw.h). Rows without a filter and greedy ones are its work, too.
// - Top-p, or a top-k that keeps much: `try` draws from all tokens, and asks of each token drawn whether it is kept, which is one sum over what is
//   above it (try.h, above.h). Blocks share in that: of those that draw, where rows are few; where they are many, `try` is launched again to ask for those
//   rows of which the slices do not tell. Where no try is kept, one of them searches (search.h).
// - A top-k that is too large for the one and too small for the other: `look` comes before the draw. Its blocks, many a row, take a sample and set
//   two pivots (aim.h), sum what is above them and list what is between (look.h). Among those, the last one to keep is found (search.h).
//
// In a batch whose rows go different ways, `try` does what `draw` does, and blocks leave what is not theirs. It is compiled for few rows, for some and
// for many; `draw` for many, too (block.h).
//
// What is drawn is docs/definition.md's, bit for bit; how the kept tokens are found is not part of it, and may change.
#include "draw.h"
#include "gather.h"
#include "logits.h"
#include "read.h"
#include "search.h"
#include "try.h"

// For a list of all kept tokens, if the search says that the list is long enough: others than the k-th may be sought among them.
#define MAX_K_LISTED 1536u

// Rows of which `look` finds out what to keep, before they are drawn from, where the vocabulary is above CAPACITY.
DEVICE bool wants_look(u32 flags) { return (flags & (TOP_K | BY_SLICES | BY_GROUPS | TRIED)) == TOP_K; }

// Where the row is, for the block: one thread says it.
template <typename T>
DEVICE void place_row(Seen &seen, u32 by, u32 row, const T *logits, i64 stride, u32 vocab, const float *largest, const u8 *groups, u64 *mass,
                      u64 *kept, u64 *wide) {
    if (thread_index() != by) return;
    u32 slices = (vocab + SLICE - 1) / SLICE;
    seen.logits = (const GLOBAL T *)(logits + row * stride);
    seen.vocab = vocab;
    seen.slices = slices;
    seen.largest = (const GLOBAL float *)(largest + (u64)row * slices);
    seen.groups = (const GLOBAL u8 *)(groups + (u64)row * slices * GROUPS);
    seen.mass = (GLOBAL u64 *)(mass + (u64)row * slices);
    seen.kept = (GLOBAL u64 *)(kept + (u64)row * slices);
    seen.wide = wide_of(wide, row);
}

// The block's copy of the row's parameters.
DEVICE void copy_params(Seen &seen, const RowParams *params, u32 row) {
    u32 t = thread_index();
    if (t < sizeof(RowParams) / 4) ((u32 *)&seen.params)[t] = ((const u32 *)(params + row))[t];
}

// The row's largest logit, NaN if there is one, and the smallest of the slices' largest, less those that are -inf.
struct Ends {
    float most, least;
};

DEVICE Ends ends_of(const Mine &mine, const float *largest, u32 slices, Block &b) {
    u32 ends[2] = {0, 0};
    ROLLED for (u32 j = thread_index(); j < slices; j += BLOCK) {
        float most = largest_of_mine(mine, largest, j);
        u32 rank = most != most ? 0xffffffffu : rank_of(most), below = most > NEG_INF ? ~rank : 0;
        ends[0] = rank > ends[0] ? rank : ends[0];
        ends[1] = below > ends[1] ? below : ends[1];
    }
    block_maxes<2>(b, ends);
    return {unrank(ends[0]), unrank(~ends[1])};
}

// Whether a token can be drawn at all.
DEVICE bool has_token(Ends ends) { return ends.most > NEG_INF; }

// What follows from the slices' largest logits. One thread's.
DEVICE void measure(Seen &seen, Ends ends) {
    const RowParams &p = seen.params;
    float most = ends.most;
    seen.top = (u64)rank_of(most) << 32 | 0xffffffffu;
    seen.least_slice = ends.least;
    (Ruler &)seen = ruler_from(p, most);
    u64 least = below_logit(most + p.min_p_offset);
    seen.least = least > LOWEST_KEY ? least : LOWEST_KEY;
    seen.weigh = NEITHER;
    seen.place = seen.kept_above = LOWEST_KEY;
    seen.whole = 0;
}

// A logit with every kept token at or above it and few others, from the summaries and the tries, none of which is kept; -inf if they do not tell. Leaves
// the row's mass, too, if that is summed meanwhile.
template <typename T, bool with_tries>
DEVICE float bound_of(Row<T> &row, Ends ends) {
    Shared &shared = *row.shared;
    const RowParams &p = shared.params;
    float bound = with_tries && row.flags & TRIED ? key_logit(shared.refused) : NEG_INF;
    if (row.flags & (BY_SLICES | BY_GROUPS)) {
        bound = kth_largest(row, p.top_k, ends.most, ends.least);
        if (row.flags & MASS_ABOUT) {
            // Nobody asks before the next barrier.
            if (wave_index() == WAVES - 1) {
                u64 whole = whole_of_waves(shared);
                shared.whole = whole;
                shared.limit = nucleus_limit(p.top_p, whole);
            }
            // Far from zero the first read's sums are void, and a search has others made.
            if (uniform(shared.scale.base != 0.0f)) return NEG_INF;
        }
    } else if (uniform(shared.vocab <= CAPACITY)) {
        bound = bound > LOWEST_LOGIT ? bound : LOWEST_LOGIT;
    }
    // What p is a share of may include what min-p refuses.
    float least = ends.most + p.min_p_offset;
    return least > bound && !(row.flags & RENORMALISED) ? least : bound;
}

// Gathers the tokens that can be kept, if they are few. If they may be many, searches for the place below which nothing is kept, by each
// filter, and draws from what is above. `looked`: others have begun with that.
template <typename T, bool with_tries>
DEVICE void draw_filtered(Row<T> &row, Ends ends, bool looked) {
    Shared &shared = *row.shared;
    const RowParams &p = shared.params;
    // A list of all that can be kept, or of what is above an estimate.
    bool estimated = looked && uniform(shared.tally.counts >> 32 == 0 && shared.tally.listed <= CAPACITY);
    u32 length = estimated ? uniform(shared.tally.listed) : 0;
    u64 low = shared.low, kept = shared.tally.masses[0];
    if (estimated) {
        load_listed(row);
    } else if (!looked || row.flags & MIN_P) {
        float bound = bound_of<T, with_tries>(row, ends);
        if (uniform(bound > NEG_INF)) length = gather(row, bound);
        low = below_logit(bound);
        kept = 0;
    }
    if (length && uniform(draw_from_list(row, length, estimated, low, kept))) return;
    barrier();
    // A search needs to know it exactly.
    if (row.flags & MASS_ABOUT) {
        sum_again(row);
        leave_whole(row, Ruler(shared));
    }
    u32 *room = (u32 *)shared.list.keys, weigh = row.flags & TOP_K ? BY_COUNT : BY_MASS;
    static_assert(ROOM_WORDS <= 2 * CAPACITY, "the candidates' room is enough");
    Four<T> four[1];
    for (;;) {
        bool done = uniform(weigh > BY_MASS || (weigh == BY_MASS && !(p.flags & TOP_P)));
        if (done) {
            // What min-p refuses is left to be done.
            if (thread_index() == 0) shared.low = shared.high = shared.place > shared.least ? shared.place : shared.least;
            barrier();
            if (uniform(shared.low == shared.kept_above && shared.low != LOWEST_KEY)) break;
        } else if (!looked) {
            if (uniform(shared.weigh != weigh)) {
                // The nucleus is that of the whole row, or of the top k, which have been found then.
                bool of_top_k = weigh == BY_MASS && uniform(p.flags & RENORMALISED);
                u64 top_k_mass = of_top_k ? kept_mass(row) : 0;
                barrier();
                if (thread_index() == 0)
                    begin(shared, p, (Weigh)weigh, of_top_k ? shared.place : LOWEST_KEY, of_top_k ? top_k_mass : shared.whole);
                barrier();
            }
            if (uniform(shared.looks < LOOKS_BY_SAMPLE))
                aim<T, 1, false>(shared, row.block, room, (Weigh)weigh, four);
            else
                aim_at_thirds(shared);
        }
        if (!looked) {
            if (thread_index() == 0) shared.wide->tally.listed = 0;
            Tally found = look_at<T, 1>(shared, row.block, room, 0, shared.slices);
            if (thread_index() == 0) {
                shared.tally = found;
                shared.tally.listed = shared.wide->tally.listed;
            }
            barrier();
        }
        looked = false;
        if (done) break;
        u64 place = judge(row, (Weigh)weigh);
        if (uniform(place == AGAIN)) continue;
        if (thread_index() == 0) {
            shared.kept_above = place;
            if (place > shared.place) shared.place = place;
        }
        weigh++;
    }
    write_token(shared, draw_one(row, Ruler(shared), false, shared.low));
}

// The row's random numbers, by threads of the last wave.
DEVICE void draw_random(Seen &seen, const RowParams &p, u64 position) {
    u32 t = BLOCK - 1 - thread_index();
    if (t <= TRIES) seen.random[TRIES - t] = philox(p.seed, position, t ? TRIES - t : last_round(p.flags));
}

// Before a search by a kernel with tries: registers were needed for other things. Has barriers.
template <typename T>
DEVICE Ends begin_to_search(Row<T> &row, bool after_tries) {
    Shared &shared = *row.shared;
    barrier();
    if (after_tries) {
        // Who asks in a launch of its own has had no use for them.
        draw_random(shared, shared.params, shared.position);
        if (thread_index() == 0) {
            u64 highest = 0;
            ROLLED for (u32 d = 0; d < TRIES; d++) highest = shared.tried.drawn[d].key > highest ? shared.tried.drawn[d].key : highest;
            shared.refused = highest;
        }
        begin_to_gather(shared);
        barrier();
    }
    row.flags = uniform(shared.params.flags);
    row.mine = mine_of(shared, row.flags);
    return {key_logit(shared.top), shared.least_slice};
}

// What there is to say without a search: no token, only one, any; or the first of the tries that is kept. A kernel `with_tries` does for every row;
// one without is shorter, and 0.3 us faster. Of a row that several blocks draw from, this is a part.
template <typename T, bool with_tries>
DEVICE Next draw_at_once(Row<T> &row, Ends ends, u32 stage) {
    Shared &shared = *row.shared;
    bool only_one = row.flags & GREEDY || uniform(ends.most == POS_INF);
    u32 part = with_tries ? uniform(shared.part) : 0;
    if (only_one || !uniform(has_token(ends))) {
        if (part == 0) write_token(shared, has_token(ends) ? find_equal(row, ends.most) : INVALID_TOKEN);
        return DONE;
    }
    // Nobody needs it at once.
    if (thread_index() == BLOCK - 1 - WAVE) measure(shared, ends);
    // Known about, the row's mass is summed while the k-th slice is sought.
    if (!(row.flags & MASS)) return SEARCH;
    // Worked out by each thread, lest all wait for `measure`.
    Ruler ruler = ruler_from(shared.params, ends.most);
    if (uniform(ruler.scale.base != 0.0f)) {
        if (part) return DONE;
        barrier();
        if (thread_index() == 0) shared.parts = 1;
        sum_again(row);
    }
    if (with_tries && row.flags & TRIED) return draw_tries(row, ruler, stage);
    if (is_unfiltered(row.flags)) {
        write_token(shared, draw_one(row, ruler, true, 0));
        return DONE;
    }
    leave_whole(row, ruler);
    return SEARCH;
}

template <typename T, bool with_tries>
DEVICE void draw_of(const T *logits, i64 stride, u32 vocab, const RowParams *params, u64 *positions, const float *largest,
                    const u8 *groups, u64 *mass, u64 *kept, u64 *wide, u32 after_look, u32 *ids, u32 parts, u32 stage) {
    SHARED Shared place;
    Shared &shared = held(place);
    u32 index = block_index(), part = block_index_y(), t = thread_index(), slices = (vocab + SLICE - 1) / SLICE;
    bool asks = with_tries && ROWS != FEW_ROWS && stage == ASKED;
    // What depends on no launch, but on the row: the last waves' work, which may have no slices to wait for.
    auto begin = [&] {
        u64 position = BLOCK - 1 - t <= TRIES ? read_shared_cache(positions + index) : 0;
        place_row(shared, BLOCK - 1 - WAVE, index, logits, stride, vocab, largest, groups, mass, kept, wide);
        copy_params(shared, params, index);
        begin_to_gather(shared);
        if (!asks) draw_random(shared, params[index], position);
        if (t == BLOCK - 1) {
            shared.id = (GLOBAL u32 *)(ids + index);
            shared.next_position = (GLOBAL u64 *)(positions + index);
            shared.position = position;
            if (with_tries) shared.part = part;
            if (with_tries) shared.parts = parts;
        }
        return params[index].flags;
    };
    // Positions are written by launches, too: by one that had ended when the last one began.
    u32 flags = asks ? 0 : begin();
    wait_for_last_launch();
    if (asks) {
        u32 queued = uniform(wide_of(wide, 0)->tally.queued);
        if (queued == 0) return;
        parts = parts_of_row(slices, parts / queued);
        part = index / queued;
        if (part >= parts) return;
        index = uniform(wide_of(wide, index % queued)->queue);
        flags = begin();
    }
    // All that is asked for at first is asked for before anything waits.
    const float *largest_of_row = largest + (u64)index * slices;
    flags = uniform(flags);
    Row<T> row = {&shared, {&shared.scratch, 0}, flags, mine_of(largest_of_row, mass + (u64)index * slices, asks ? 0 : slices, flags), 0};
    if (with_tries && ROWS == FEW_ROWS && flags & PLACED && t < slices) row.placed = kept[(u64)index * slices + t];
    GLOBAL Wide *mine = wide_of(wide, index);
    if ((after_look || asks) && t < STATE_WORDS + TALLY_WORDS) ((u32 *)(State *)&shared)[t] = ((const GLOBAL u32 *)mine)[t];
    if (asks && t < TRIED_WORDS) ((u32 *)&shared.tried)[t] = ((const GLOBAL u32 *)&mine->tried)[t];
    // Of rows that may go through many of their groups: what is known of these was written so that it leaves the cache first.
    if (ROWS == MANY_ROWS && !asks && wants_groups(flags) && !(flags & (BY_SLICES | BY_GROUPS)))
        ROLLED for (u32 i = t * LINE; i < slices * GROUPS; i += BLOCK * LINE) prefetch(groups + (u64)index * slices * GROUPS + i);
    // For other rows one block is enough.
    if (with_tries && part && !(row.flags & TRIED)) return;
    bool looked = false;
    if (after_look || asks) {
        barrier();
        looked = !asks && uniform(shared.tally.looked);
    }
    Ends ends = {0.0f, 0.0f};
    // Has a barrier, too.
    if (!asks) ends = looked ? Ends{key_logit(shared.top), 0.0f} : ends_of(row.mine, largest_of_row, slices, row.block);
    Next next = asks ? ASK : looked ? SEARCH : draw_at_once<T, with_tries>(row, ends, stage);
    if (with_tries && next == ASK) next = draw_asked(row);
    if (next == DONE) return;
    if (with_tries) ends = begin_to_search(row, next == SEARCH_AFTER_TRIES);
    draw_filtered<T, with_tries>(row, ends, after_look && uniform(shared.tally.looked));
}

// No filter that wants it, no token, or no sums yet: `draw` will see.
DEVICE void nothing_to_look_for(GLOBAL Wide *wide) {
    if (block_index_y()) return;
    if (thread_index() < STATE_WORDS) ((GLOBAL u32 *)wide)[thread_index()] = 0;
    if (thread_index() == 0) wide->tally.looked = false;
}

// The launch between, for vocabularies above CAPACITY, `blocks` blocks a row. Each sets the same pivots for itself. Where not all rows want it,
// those that do not are not read.
template <typename T>
DEVICE void look_of(const T *logits, i64 stride, u32 vocab, const RowParams *params, const float *largest, const u8 *groups, u64 *mass,
                    u64 *kept, u64 *wide, u32 blocks, u32 all_rows) {
    SHARED Seen place;
    SHARED u32 words[ROOM_WORDS];
    Seen &seen = held(place);
    u32 *room = held(words);
    wait_for_last_launch();
    Block block = {&seen.scratch, 0};
    u32 index = block_index(), t = thread_index(), slices = (vocab + SLICE - 1) / SLICE;
    GLOBAL Wide *mine = wide_of(wide, index);
    u32 flags = uniform(params[index].flags);
    if (!all_rows && !wants_look(flags)) return nothing_to_look_for(mine);
    // Asked for before anything is known, lest it be waited for one after the other.
    const float *largest_of_row = largest + (u64)index * slices;
    u32 step = sample_step(vocab);
    Four<T> sample[SAMPLE_AT_ONCE];
    read_sample<SAMPLE_AT_ONCE>(sample, logits + index * stride, vocab, sample_first(logits + index * stride, step), sample_stride(step));
    Mine of_thread = mine_of(largest_of_row, mass + (u64)index * slices, slices, flags);
    place_row(seen, 0, index, logits, stride, vocab, largest, groups, mass, kept, wide);
    copy_params(seen, params, index);
    // The sample's bins.
    ROLLED for (u32 i = opaque(t); i < SAMPLE_BINS; i += BLOCK) room[i] = 0;
    Ends ends = ends_of(of_thread, largest_of_row, slices, block);
    const RowParams &p = seen.params;
    bool looks = has_token(ends) && ends.most < POS_INF && measured_from({0.0f, p.scale, p.inverse}, ends.most).base == 0.0f;
    if (!uniform(looks)) return nothing_to_look_for(mine);
    if (t == 0) measure(seen, ends);
    barrier();
    u64 whole = flags & MASS ? block_sum(block, shares_of_thread(seen, Ruler(seen), of_thread)) : 0;
    if (t == 0) {
        seen.whole = whole;
        begin(seen, p, BY_COUNT, LOWEST_KEY, whole);
    }
    // If they are few, or what is sought next is sought among them, all is listed.
    u32 few = p.top_k <= MAX_K_LISTED ? BETTER_THAN_ENOUGH : FEW / 4 * 3;
    if (aim<T, SAMPLE_AT_ONCE, true>(seen, block, room, BY_COUNT, sample) <= few && t == 0) seen.high = seen.ceiling;
    u32 each = (slices + blocks - 1) / blocks, first = block_index_y() * each, last = first + each < slices ? first + each : slices;
    Tally found = look_at<T, FOURS_AT_ONCE>(seen, block, room, first, last);
    if (t == 0) {
        atomic_add_on_device((u64 *)&mine->tally.counts, found.counts);
        atomic_add_on_device((u64 *)&mine->tally.masses[0], found.masses[0]);
        atomic_add_on_device((u64 *)&mine->tally.masses[1], found.masses[1]);
    }
    // What all blocks of the row know is told by one.
    if (block_index_y()) return;
    if (t < STATE_WORDS) ((GLOBAL u32 *)mine)[t] = ((const u32 *)(const State *)&seen)[t];
    if (t == 0) mine->tally.looked = true;
}

#define LOOK_KERNEL(T)                                                                                                \
    KERNEL(BLOCK, 2)                                                                                                  \
    look_##T(const T *logits, i64 stride, u32 vocab, const RowParams *params, const float *largest,                   \
             const u8 *groups, u64 *mass, u64 *kept, u64 *wide, u32 blocks, u32 all_rows) {                          \
        look_of<T>(logits, stride, vocab, params, largest, groups, mass, kept, wide, blocks, all_rows);               \
    }

#define DRAW_KERNEL(T)                                                                                                \
    KERNEL(BLOCK, 1024 / BLOCK)                                                                                       \
    draw_##T(const T *logits, i64 stride, u32 vocab, const RowParams *params, u64 *positions, const float *largest,   \
             const u8 *groups, u64 *mass, u64 *kept, u64 *wide, u32 after_look, u32 *ids) {                          \
        draw_of<T, false>(logits, stride, vocab, params, positions, largest, groups, mass, kept, wide, after_look,    \
                          ids, 1, BY_ITS_BLOCKS);                                                                     \
    }

#define TRY_KERNEL(T)                                                                                                 \
    KERNEL(BLOCK, 1024 / BLOCK)                                                                                       \
    try_##T(const T *logits, i64 stride, u32 vocab, const RowParams *params, u64 *positions, const float *largest,    \
            const u8 *groups, u64 *mass, u64 *kept, u64 *wide, u32 after_look, u32 *ids, u32 parts, u32 stage) {     \
        draw_of<T, true>(logits, stride, vocab, params, positions, largest, groups, mass, kept, wide, after_look,     \
                         ids, parts, stage);                                                                          \
    }

// Some rows are looked at and drawn from by what few rows have, and many are looked at by it, so the host, which names a dtype, leaves that out. Checks have
// everything.
#if ROWS == FEW_ROWS || !defined(LOGITS)
FOR_LOGITS(LOOK_KERNEL)
#endif
#if ROWS != SOME_ROWS || !defined(LOGITS)
FOR_LOGITS(DRAW_KERNEL)
#endif
FOR_LOGITS(TRY_KERNEL)
