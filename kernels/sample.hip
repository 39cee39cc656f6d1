// Dual-pivot sampling: one token a row, by none, top-k, top-p, both, min-p.
//
// Two launches, or four. `slices`, many blocks a row, reads the logits once (read.h). `draw`, one block a row, finds out from what that
// leaves which tokens can be kept, gathers them in shared memory if they are few (gather.h), and draws by inverse CDF. If they may be
// many, it takes a sample and sets two pivots (search.h); `look`, many blocks a row, sums what is above them and lists what is between
// (look.h); and `draw` goes on from there.
//
// What is drawn is docs/definition.md's, bit for bit; how the kept tokens are found is not part of it, and may change.
#include "gather.h"
#include "read.h"
#include "search.h"

// Up to this many tokens, and not many more than seven eighths of the slices, are bounded by the slices' largest logits.
#define MAX_K_BY_SLICES 160u
// Up to this many are surely gathered, beyond perhaps not.
#define MAX_K_GATHERED 1536u

// What a launch of `draw` is for: all rows to the end; or up to where another launch has to look; or, after that, on from there.
enum Stage { ALL, MAY_LEAVE, RETURN };
// What a finite logit is at least.
#define LOWEST_LOGIT unrank((u32)(LOWEST_KEY >> 32) + 1)
// No token yet.
#define LEFT 0xfffffffeu

// Turns the first launch's sums, in slice units, into shares of the row's mass.
template <typename T>
DEVICE void to_shares(Row<T> &row) {
    if (uniform(row.shared->scale.base == 0.0f)) {
        ROLLED for (u32 j = thread_index(); j < row.shared->slices; j += BLOCK) {
            SliceScale s = scale_of(*row.shared, j);
            row.shared->mass[j] = s.some ? to_row_units(s, row.shared->mass[j], row.shared->unit) : 0;
        }
    } else {
        // Far from zero the sums are void: add the row up again.
        ROLLED for (u32 j = wave_index(); j < row.shared->slices; j += WAVES) {
            SliceScale s = scale_of(*row.shared, j);
            float z[STEPS];
            load_slice(logits_of(row), row.shared->vocab, j, z);
            u64 sum = s.some ? to_row_units(s, mass_of(z, s), row.shared->unit) : 0;
            if (lane_index() == 0) row.shared->mass[j] = sum;
        }
    }
    barrier();
}

template <typename T>
DEVICE u64 sum_of_shares(Row<T> &row) {
    u64 sum = 0;
    ROLLED for (u32 j = thread_index(); j < row.shared->slices; j += BLOCK) sum += row.shared->mass[j];
    return block_sum(row.block, sum);
}

// Inverse CDF, ids ascending, by the slices' shares in row.shared->mass: of all tokens, or of those above `low`.
template <typename T>
DEVICE u32 draw_by_shares(Row<T> &row, bool all, u64 low) {
    // Each thread sums a run of slices; the thread whose run holds r walks it.
    u32 run = (row.shared->slices + BLOCK - 1) / BLOCK, first = thread_index() * run;
    u32 last = first + run < row.shared->slices ? first + run : row.shared->slices;
    u64 sum = 0, total;
    ROLLED for (u32 j = first; j < last; j++) sum += row.shared->mass[j];
    u64 before = block_prefix(row.block, sum, &total), r = mul_hi(row.shared->random, total);
    bool mine = before <= r && r - before < sum;
    u32 drawn = first;
    u64 rest = r - before;
    if (mine)
        ROLLED for (; rest >= row.shared->mass[drawn]; drawn++) rest -= row.shared->mass[drawn];
    if (mine) {
        row.shared->result[0] = drawn;
        row.shared->result[1] = rest;
    }
    barrier();
    drawn = (u32)row.shared->result[0];
    rest = row.shared->result[1];
    u64 target = all ? first_above(scale_of(*row.shared, drawn), rest, row.shared->unit) : rest + 1;
    return find_sum(row, drawn, all, low, target);
}

// The questions in turn, to a list of all tokens from `bound` on, those that can be kept among them: which is the k-th, which the last of
// the nucleus, which is drawn? False if the bound, an estimate, turns out to be too high.
template <typename T>
DEVICE bool draw_from_list(Row<T> &row, const RowParams &p, bool estimated, float bound, u32 *id) {
    enum { KTH, NUCLEUS, DRAWN };
    Candidates &list = row.shared->list;
    u64 low = below_logit(bound), guess = row.shared->aimed ? row.shared->high : 0;
    ROLLED for (u32 ask = has_top_k(p, row.shared->vocab) ? KTH : has_top_p(p) ? NUCLEUS : DRAWN; ask <= DRAWN; ask++) {
        Total inside = {0, list.count};
        u64 x = p.top_k - 1;
        if (ask == KTH && uniform(inside.count <= x)) {
            if (estimated) return false;
            continue;
        }
        if (ask == NUCLEUS && !has_top_p(p)) continue;
        if (ask == DRAWN && row.shared->least > low) low = row.shared->least;
        if (ask != KTH) inside = total_above(list, row.block, low);
        if (ask == NUCLEUS) {
            u64 limit = nucleus_limit(p.top_p, is_renormalised(p, row.shared->vocab) ? inside.mass : row.shared->whole);
            if (uniform(inside.mass < limit)) {
                if (estimated && !has_top_k(p, row.shared->vocab)) return false;
                continue;
            }
            x = limit - 1;
        }
        if (ask == DRAWN) x = mul_hi(row.shared->random, inside.mass);
        Weigh weigh = ask == KTH ? BY_COUNT : BY_MASS;
        u64 bottom = ask == DRAWN ? ~row.shared->vocab : low, top = ask == DRAWN ? 0xffffffffu : row.shared->top;
        u64 key = crossing(list, row.block, ask == DRAWN ? BY_ID : BY_KEY, weigh, low, inside.count, bottom, top, guess, x);
        guess = 0;
        *id = key_id(key);
        low = key - 1;
    }
    return true;
}

// The same for a list of few: TEAM threads have one each, and compare it with all.
template <typename T>
DEVICE bool draw_from_few(Row<T> &row, const RowParams &p, bool estimated, u32 *id) {
    Candidates &list = row.shared->list;
    u32 few = list.count, mine = thread_index() / TEAM;
    bool by_k = has_top_k(p, row.shared->vocab);
    if (estimated && by_k && uniform(few < p.top_k)) return false;
    bool some = mine < few, first = some && thread_index() % TEAM == 0;
    if (first) {
        list.few_keys[mine] = list.keys[mine];
        list.few_weights[mine] = unpack_mass(list.masses[mine]) << COUNT_BITS | 1;
    }
    barrier();
    u64 key = some ? list.few_keys[mine] : 0, mass = some ? list.few_weights[mine] >> COUNT_BITS : 0;
    u64 sums = few_before(list, list.few_weights, few, BY_KEY), above = sums >> COUNT_BITS;
    u32 count = sums & ((1u << COUNT_BITS) - 1);
    bool kept = some && (!by_k || count < p.top_k);
    if (has_top_p(p)) {
        u64 of = row.shared->whole;
        if ((estimated && !by_k) || is_renormalised(p, row.shared->vocab)) {
            u64 listed = block_sum(row.block, first && kept ? mass : 0);
            if (estimated && !by_k && uniform(listed < nucleus_limit(p.top_p, of))) return false;
            if (by_k) of = listed;
        }
        kept = kept && above < nucleus_limit(p.top_p, of);
    }
    kept = kept && key > row.shared->least;
    // Nobody wants the packed masses any more, and their room is where nobody reads yet.
    u64 *weights = (u64 *)list.masses;
    if (first) weights[mine] = kept ? mass : 0;
    u64 x = mul_hi(row.shared->random, block_sum(row.block, first && kept ? mass : 0));
    u64 before = few_before(list, weights, few, BY_ID);
    if (kept && before <= x && x - before < mass) list.found = key;
    barrier();
    *id = key_id(list.found);
    return true;
}

// Begins the search for the last of the top k, or of the nucleus: that of the whole row, or of the top k, which have been found then.
template <typename T>
DEVICE void begin(Row<T> &row, Weigh weigh) {
    Shared &shared = *row.shared;
    const RowParams &p = shared.params;
    bool of_top_k = weigh == BY_MASS && is_renormalised(p, shared.vocab);
    u64 top_k_mass = of_top_k ? sum_of_shares(row) : 0;
    barrier();
    if (thread_index() == 0) {
        u64 of = of_top_k ? top_k_mass : shared.whole;
        shared.weigh = weigh;
        shared.x = weigh == BY_COUNT ? p.top_k - 1 : nucleus_limit(p.top_p, of) - 1;
        shared.lowest = shared.bottom = of_top_k ? shared.place : LOWEST_KEY;
        shared.ceiling = shared.top;
        shared.above_bottom = of;
        shared.above_ceiling = 0;
        shared.looks = shared.known = shared.aimed = 0;
    }
    barrier();
}

// A logit with every kept token at or above it and few others, from the summaries alone; -inf if they do not tell.
template <typename T>
DEVICE float bound_of(Row<T> &row, bool *estimated) {
    Shared &shared = *row.shared;
    const RowParams &p = shared.params;
    bool by_k = has_top_k(p, shared.vocab);
    float bound = NEG_INF;
    *estimated = false;
    if (by_k && uniform(p.top_k <= MAX_K_BY_SLICES && p.top_k * 8 <= shared.slices * 7)) {
        bound = kth_slice(row, p.top_k);
    } else if (uniform(shared.vocab <= CAPACITY)) {
        bound = LOWEST_LOGIT;
    } else if (!by_k && has_top_p(p)) {
        bound = bound_by_largest(row, (u32)(p.top_p >> 32));
        *estimated = true;
    }
    // What p is a share of may include what min-p refuses.
    float least = key_logit(shared.top) + p.min_p_offset;
    if (least > bound && !is_renormalised(p, shared.vocab)) {
        bound = least;
        *estimated = false;
    }
    return bound;
}

// Gathers the tokens that can be kept, if they are few. If they may be many, searches for the place below which nothing is kept, by each
// filter, and draws from what is above. LEFT if another launch has to look at the row first; the launch after that comes here again.
template <typename T>
DEVICE u32 draw_filtered(Row<T> &row) {
    Shared &shared = *row.shared;
    const RowParams &p = shared.params;
    bool estimated = false;
    u32 weigh = shared.stage == RETURN ? uniform(shared.weigh) : has_top_k(p, shared.vocab) ? (u32)BY_COUNT : (u32)BY_MASS;
    float bound = NEG_INF;
    if (shared.stage != RETURN) bound = bound_of(row, &estimated);
    for (;;) {
        if (uniform(bound > NEG_INF) && gather(row, bound)) {
            u32 id;
            if (uniform(shared.list.count <= FEW) ? draw_from_few(row, p, estimated, &id)
                                                  : draw_from_list(row, p, estimated, bound, &id))
                return id;
        }
        bound = NEG_INF;
        bool done = uniform(weigh > BY_MASS || (weigh == BY_MASS && !has_top_p(p)));
        if (done) {
            // What min-p refuses is left to be done.
            if (thread_index() == 0) shared.low = shared.high = shared.place > shared.least ? shared.place : shared.least;
            barrier();
            if (uniform(shared.low == shared.shares_of && shared.low != LOWEST_KEY)) break;
        } else if (uniform(shared.stage != RETURN)) {
            bool first = uniform(shared.weigh == NEITHER);
            if (uniform(shared.weigh != weigh)) begin(row, (Weigh)weigh);
            if (uniform(shared.looks >= LOOKS_BY_SAMPLE)) {
                aim_at_thirds(row);
            } else if (!uniform(shared.aimed) && aim(row, (Weigh)weigh) <= ENOUGH && first) {
                bound = key_logit(shared.low);
                estimated = bound > LOWEST_LOGIT;
                if (!estimated) bound = LOWEST_LOGIT;
                continue;
            }
        }
        Look found;
        if (uniform(shared.stage == RETURN)) {
            found = look_of_others(shared.wide);
            barrier();
            if (thread_index() == 0) shared.stage = ALL;
        } else {
            if (thread_index() == 0) shared.wide->listed = 0;
            barrier();
            if (uniform(shared.stage == MAY_LEAVE)) return LEFT;
            found = look_at<T, 1, false>(shared, 0, WAVES);
            found.listed = shared.wide->listed;
        }
        if (done) break;
        u64 place = judge(row, (Weigh)weigh, found);
        if (uniform(place == AGAIN)) continue;
        if (thread_index() == 0) {
            shared.shares_of = place;
            if (place > shared.place) shared.place = place;
            shared.aimed = false;
        }
        barrier();
        weigh++;
    }
    return draw_by_shares(row, false, shared.low);
}

// What there is to say without regard to filters. False if there are some.
template <typename T>
DEVICE bool draw_at_once(Row<T> &row, u32 *id) {
    u64 best = 0;
    ROLLED for (u32 j = thread_index(); j < row.shared->slices; j += BLOCK) {
        u64 key = key_of_slice(largest_of_slice(row, j), j);
        best = key > best ? key : best;
    }
    // The first slice with the largest logit, whose first token with it is the first in the order.
    u64 top = block_max(row.block, best);
    Shared &shared = *row.shared;
    const RowParams &p = shared.params;
    float most = key_logit(top);
    *id = INVALID_TOKEN;
    if (uniform(top == ~(u64)0 || most == NEG_INF)) return true;
    if (uniform(p.flags & GREEDY || most == POS_INF)) {
        *id = find_equal(row, key_id(top), most);
        return true;
    }

    if (thread_index() == 0) {
        shared.top = top;
        shared.scale = measured_from({0.0f, p.scale, p.inverse}, most);
        shared.unit = slice_scale(shared.scale, most, NEGLIGIBLE).unit;
        shared.random = philox(p.seed, shared.position);
        u64 least = below_logit(most + p.min_p_offset);
        shared.least = least > LOWEST_KEY ? least : LOWEST_KEY;
        shared.weigh = NEITHER;
        shared.place = shared.shares_of = LOWEST_KEY;
        shared.aimed = false;
    }
    barrier();
    if (wants_mass(p, row.shared->vocab)) to_shares(row);
    if (is_unfiltered(p, row.shared->vocab)) {
        *id = draw_by_shares(row, true, 0);
        return true;
    }
    if (wants_mass(p, row.shared->vocab)) {
        u64 whole = sum_of_shares(row);
        if (thread_index() == 0) shared.whole = whole;
    }
    return false;
}

// The block's copy of where the row is.
template <typename T>
DEVICE void place_row(Seen &seen, u32 row, const T *logits, i64 stride, u32 vocab, const float *largest, u64 *mass, u64 *wide) {
    u32 slices = (vocab + SLICE - 1) / SLICE;
    seen.logits = (const GLOBAL T *)(logits + row * stride);
    seen.vocab = vocab;
    seen.slices = slices;
    seen.largest = (const GLOBAL float *)(largest + (u64)row * slices);
    seen.mass = (GLOBAL u64 *)(mass + (u64)row * slices);
    seen.wide = wide_of(wide, row);
}

#define STATE_WORDS (sizeof(State) / 8)

// A block's state goes to device memory where it leaves its row to others, and comes from there where it returns.
DEVICE void return_to(State &state, const GLOBAL Wide *wide) {
    if (thread_index() < STATE_WORDS) ((u64 *)&state)[thread_index()] = ((const GLOBAL u64 *)wide)[thread_index()];
}

DEVICE void leave(const State &state, GLOBAL Wide *wide) {
    if (thread_index() < STATE_WORDS) ((GLOBAL u64 *)wide)[thread_index()] = ((const u64 *)&state)[thread_index()];
    if (thread_index() < 2) wide->counts[thread_index()] = wide->masses[thread_index()] = 0;
}

template <typename T>
DEVICE void draw_of(const T *logits, i64 stride, u32 vocab, const RowParams *params, u64 *positions,
                    const float *largest, const float *groups, u64 *mass, u64 *wide, u32 stage, u32 *ids) {
    SHARED Shared shared;
    u32 index = block_index(), t = thread_index(), slices = (vocab + SLICE - 1) / SLICE;
    if (stage == RETURN && !uniform(wide_of(wide, index)->pending)) return;
    Row<T> row = {&shared, {&shared.scratch, 0}, t < slices ? largest[(u64)index * slices + t] : NEG_INF};
    if (t == 0) {
        place_row(shared, index, logits, stride, vocab, largest, mass, wide);
        shared.groups = (const GLOBAL float *)(groups + (u64)index * slices * GROUPS);
        shared.position = positions[index];
        shared.next_position = (GLOBAL u64 *)(positions + index);
        shared.stage = stage;
        shared.id = (GLOBAL u32 *)(ids + index);
    }
    if (t < sizeof(RowParams) / 4) ((u32 *)&shared.params)[t] = ((const u32 *)(params + index))[t];
    barrier();
    u32 id;
    if (stage == RETURN) {
        return_to(shared, shared.wide);
        barrier();
    }
    if (stage == RETURN || !draw_at_once(row, &id)) id = draw_filtered(row);
    if (id == LEFT) leave(shared, shared.wide);
    if (t == 0) {
        if (stage == MAY_LEAVE) shared.wide->pending = id == LEFT;
        if (id == LEFT) return;
        *shared.id = id;
        *shared.next_position = shared.position + 1;
    }
}

// The launch between two of `draw`: `blocks` blocks a row.
template <typename T>
DEVICE void look_of(const T *logits, i64 stride, u32 vocab, const float *largest, u64 *mass, u64 *wide, u32 blocks) {
    SHARED Seen seen;
    GLOBAL Wide *mine = wide_of(wide, block_index());
    if (!uniform(mine->pending)) return;
    if (thread_index() == 0) place_row(seen, block_index(), logits, stride, vocab, largest, mass, wide);
    return_to(seen, mine);
    barrier();
    Look found = look_at<T, STEPS / 4, true>(seen, block_index_y() * WAVES, blocks * WAVES);
    if (thread_index() < 2) {
        Total total = thread_index() ? found.high : found.low;
        atomic_add_on_device((u32 *)&mine->counts[thread_index()], total.count);
        atomic_add_on_device((u64 *)&mine->masses[thread_index()], total.mass);
    }
}

#define SAMPLE_KERNELS(name, T)                                                                                       \
    KERNEL(BLOCK, 3)                                                                                                  \
    slices_##name(const T *logits, i64 stride, u32 vocab, const RowParams *params, u32 shared_params, u32 step,       \
                  float *largest, float *groups, u64 *mass) {                                                         \
        slices_of<T>(logits, stride, vocab, params, shared_params, step, largest, groups, mass);                      \
    }                                                                                                                 \
    KERNEL(BLOCK, 2)                                                                                                  \
    draw_##name(const T *logits, i64 stride, u32 vocab, const RowParams *params, u64 *positions,                      \
                const float *largest, const float *groups, u64 *mass, u64 *wide, u32 stage, u32 *ids) {               \
        draw_of<T>(logits, stride, vocab, params, positions, largest, groups, mass, wide, stage, ids);                \
    }                                                                                                                 \
    KERNEL(BLOCK, 2)                                                                                                  \
    look_##name(const T *logits, i64 stride, u32 vocab, const float *largest, u64 *mass, u64 *wide, u32 blocks) {     \
        look_of<T>(logits, stride, vocab, largest, mass, wide, blocks);                                               \
    }

SAMPLE_KERNELS(f32, float)
SAMPLE_KERNELS(f16, f16)
SAMPLE_KERNELS(bf16, bf16)
