// Dual-pivot rejection sampling: one token a row, by none, top-k, top-p, both, min-p.
//
// Two launches. `slices` reads the logits once, many blocks a row: of each slice of 512 tokens its largest logit and,
// where the row's parameters want it, its mass. `draw`, one block a row, works on those summaries; whatever they leave
// open (how many tokens, how much mass is above a pivot?) it settles by looking again at the slices whose
// largest logit is above the pivot, and there are few of those for any pivot that matters.
//
// The procedure is docs/definition.md's, step for step; the CPU's counterpart is src/cpu/row.rs, and the two must agree on
// every bit. Dual-pivot search: Ye et al., "Sorting-Free GPU Kernels for LLM Sampling" (FlashInfer, 2025); comparing
// places in the total order instead of probabilities, and the integer masses, are this project's.
#include "block.h"

#define INVALID_TOKEN 0xffffffffu
#define SLICES_PER_BLOCK (BLOCK / WAVE)
// Of this many candidates the k-th largest is found by ranking them in shared memory.
#define CANDIDATES 1024u

DEVICE bool has_top_k(RowParams p, u32 vocab) { return p.top_k < vocab; }
DEVICE bool is_renormalised(RowParams p, u32 vocab) {
    return has_top_k(p, vocab) && p.top_p && (p.flags & RENORMALISED);
}
DEVICE bool has_min_p(RowParams p) { return p.min_p_offset > NEG_INF; }

// Whether the first read must also sum: for the nucleus, or to draw from the whole row.
DEVICE bool wants_sums(RowParams p, u32 vocab, u32 slices) {
    if (p.flags & GREEDY || is_renormalised(p, vocab)) return false;
    bool unbounded = !has_min_p(p) && (!has_top_k(p, vocab) || p.top_k > slices);
    return p.top_p || unbounded;
}

// ---- First launch: a wave a slice, a grid of rows × slices. ----------------------------------------------------------------------------

template <typename T>
DEVICE void slices_of(const T *logits, i64 stride, u32 vocab, const RowParams *params, u32 shared_params,
                      float *largest, u64 *mass) {
    u32 slices = (vocab + SLICE - 1) / SLICE;
    u32 row = block_index(), j = block_index_y() * SLICES_PER_BLOCK + wave_index();
    if (j >= slices) return;
    RowParams p = params[shared_params ? 0 : row];
    float z[STEPS];
    load_slice(logits + row * stride, vocab, j, z);
    float most = largest_of(z);
    u64 sum = 0;
    if (wants_sums(p, vocab, slices)) {
        Scale scale = {0.0f, p.scale, p.inverse};
        SliceScale s = slice_scale(scale, most, NEGLIGIBLE);
        if (s.some) sum = mass_above_threshold(z, s, NEG_INF);
    }
    if (lane_index() == 0) {
        largest[(u64)row * slices + j] = most;
        mass[(u64)row * slices + j] = sum;
    }
}

// ---- Second launch: a block a row. ----------------------------------------------------------------------------

// What the block wants to know next about the tokens above a key.
enum Question {
    MANY,     // are there more than k? (then which is the k-th?)
    KTH,      // the k-th is between `low` and `high`: is it above the middle?
    SELECT,   // there are few between them: which is it?
    NUCLEUS,  // what mass is top-p a share of?
    DRAW,     // draw one
    PIVOT_1,  // is the drawn token kept?
    PIVOT_2,  // would a token halfway to `high` be?
    BISECT,   // after MAX_ROUNDS: where exactly is the last that is kept?
    DONE,
};

#define NO_LIMIT 0xffffffffffffffffull

// The block's shared memory: where the search stands (written by the first thread between barriers), and room for the
// block's sums. Kept here, the state costs no registers.
struct Shared {
    Question question;
    u64 key;                      // what the question is about
    u64 low, high;                // no kept token is at or below `low`; `high` is kept
    u64 most_tokens, most_mass;   // a kept token has less than this above it
    u64 bound;                    // below the top k, by the slices' maxima
    u64 above_low, above_high;    // tokens above `low` and `high`, while the k-th is sought
    u64 pivot_1;
    u32 round;
    u64 above_key, above_mass;    // what the masses in `above` are of; 0 is no key
    u64 scratch[WAVES + 1];
    u64 found;
    u32 candidates;
    u64 keys[CANDIDATES];
};

// A row after the first launch. All threads hold the same values; `largest` and `above` are in device memory.
template <typename T>
struct Search {
    const T *row;
    u32 vocab, slices;
    const float *largest;
    u64 *above;  // each slice's mass above the state's `above_key`, in row units
    Scale scale;
    u32 unit;  // of the row
    Shared *shared;
};

template <typename T>
DEVICE SliceScale scale_of(const Search<T> &s, u32 j) {
    return slice_scale(s.scale, s.largest[j], NEGLIGIBLE);
}

// Publishes what one wave found to the block.
template <typename T>
DEVICE u64 publish(Search<T> &s, bool mine, u64 value) {
    if (mine) s.shared->found = value;
    barrier();
    u64 x = s.shared->found;
    barrier();
    return x;
}

template <typename T>
DEVICE u64 first_token(Search<T> &s, u32 j, float value) {
    u64 key = wave_index() == 0 ? find_equal(s.row, s.vocab, j, value) : 0;
    return publish(s, thread_index() == 0, key);
}

// The number of tokens above `key`.
template <typename T>
DEVICE u64 count_above(Search<T> &s, u64 key) {
    u64 count = 0;
    for (u32 j = wave_index(); j < s.slices; j += WAVES) {
        float threshold;
        if (!cut(j, s.largest[j], key, &threshold)) continue;
        float z[STEPS];
        load_slice(s.row, s.vocab, j, z);
        mask_ties(j, key, z);
        count += count_above_threshold(z, threshold);
    }
    return block_sum(lane_index() == 0 ? count : 0, s.shared->scratch);
}

template <typename T>
DEVICE void remember(Search<T> &s, u64 key, u64 mass) {
    if (thread_index() == 0) {
        s.shared->above_key = key;
        s.shared->above_mass = mass;
    }
    barrier();
}

// The mass above `key`; leaves each slice's share in `above`.
template <typename T>
DEVICE u64 mass_above(Search<T> &s, u64 key) {
    if (s.shared->above_key == key) return s.shared->above_mass;
    u64 total = 0;
    for (u32 j = wave_index(); j < s.slices; j += WAVES) {
        float threshold;
        u64 mass = 0;
        SliceScale scale = scale_of(s, j);
        if (scale.some && cut(j, s.largest[j], key, &threshold)) {
            float z[STEPS];
            load_slice(s.row, s.vocab, j, z);
            mask_ties(j, key, z);
            mass = to_row_units(scale, mass_above_threshold(z, scale, threshold), s.unit);
        }
        if (lane_index() == 0) s.above[j] = mass;
        total += mass;
    }
    total = block_sum(lane_index() == 0 ? total : 0, s.shared->scratch);
    remember(s, key, total);
    return total;
}

// Turns the first launch's sums, in slice units, into row units.
template <typename T>
DEVICE void adopt_sums(Search<T> &s) {
    u64 total = 0;
    for (u32 j = thread_index(); j < s.slices; j += BLOCK) {
        SliceScale scale = scale_of(s, j);
        u64 mass = scale.some ? to_row_units(scale, s.above[j], s.unit) : 0;
        s.above[j] = mass;
        total += mass;
    }
    remember(s, LOWEST_KEY, block_sum(total, s.shared->scratch));
}

// A key below the top k: below the k-th largest of the slices' largest tokens, if there are k.
template <typename T>
DEVICE u64 kth_largest_slice(Search<T> &s, u32 k) {
    if (k > s.slices) return LOWEST_KEY;
    u64 found = 0;
    bool mine = false;
    for (u32 j = thread_index(); j < s.slices; j += BLOCK) {
        // Slices stand in the order of their ids, so their indices break ties as the ids would.
        u64 key = key_of(s.largest[j], j);
        u32 before = 0;
        for (u32 i = 0; i < s.slices; i++) before += key_of(s.largest[i], i) > key;
        if (before == k - 1) {
            found = key;
            mine = true;
        }
    }
    u64 kth = publish(s, mine, found);
    float most = key_logit(kth);
    if (most == NEG_INF) return LOWEST_KEY;
    return first_token(s, key_id(kth), most) - 1;
}

// The greatest key below the k-th largest of the tokens in (low, high], of which there are at most CANDIDATES.
template <typename T>
DEVICE u64 select_kth(Search<T> &s, u32 k, u64 low, u64 high) {
    if (thread_index() == 0) s.shared->candidates = 0;
    barrier();
    for (u32 j = wave_index(); j < s.slices; j += WAVES) {
        float threshold;
        if (!cut(j, s.largest[j], low, &threshold)) continue;
        float z[STEPS];
        load_slice(s.row, s.vocab, j, z);
        mask_ties(j, low, z);
        UNROLL for (u32 i = 0; i < STEPS; i++) {
            u64 key = z[i] > threshold ? key_of(z[i], j * SLICE + i * WAVE + lane_index()) : 0;
            if (key && key <= high) s.shared->keys[atomic_add(&s.shared->candidates, 1)] = key;
        }
    }
    barrier();
    u32 candidates = s.shared->candidates;
    const u64 *keys = s.shared->keys;
    u64 found = 0;
    bool mine = false;
    for (u32 i = thread_index(); i < candidates; i += BLOCK) {
        u32 before = 0;
        for (u32 c = 0; c < candidates; c++) before += keys[c] > keys[i];
        if (before == k - 1) {
            found = keys[i];
            mine = true;
        }
    }
    return publish(s, mine, found) - 1;
}

// Inverse CDF, ids ascending, over the tokens above `low`, whose masses are in `above`: the key of the token drawn.
template <typename T>
DEVICE u64 draw_above(Search<T> &s, u64 low, u64 random) {
    u64 r = mul_hi(random, s.shared->above_mass);
    // Each thread sums a run of slices; the run that holds r is walked by its thread.
    u32 run = (s.slices + BLOCK - 1) / BLOCK;
    u32 first = thread_index() * run;
    u32 last = first + run < s.slices ? first + run : s.slices;
    u64 sum = 0;
    for (u32 j = first; j < last; j++) sum += s.above[j];
    u64 before = block_prefix_before(sum, s.shared->scratch);
    bool mine = before <= r && r - before < sum;
    u32 drawn = 0;
    u64 rest = r - before;
    if (mine)
        for (drawn = first; rest >= s.above[drawn]; drawn++) rest -= s.above[drawn];
    drawn = (u32)publish(s, mine, drawn);
    rest = publish(s, mine, rest);
    SliceScale scale = scale_of(s, drawn);
    u64 target = first_above(scale, rest, s.unit);
    u64 key = wave_index() == 0 ? find_sum(s.row, s.vocab, drawn, scale, low, target) : 0;
    return publish(s, thread_index() == 0, key);
}

// Takes the block's answer and puts the next question. One thread runs this.
DEVICE void next_question(Shared &st, const RowParams &p, u64 top, u64 count, u64 mass, u64 found) {
    bool kept = count < st.most_tokens && mass < st.most_mass;
    u64 middle;
    switch (st.question) {
    case MANY:
        st.above_low = count;
        st.question = count > p.top_k ? KTH : NUCLEUS;
        break;
    case KTH:
        if (count >= p.top_k) {
            st.low = st.key;
            st.above_low = count;
        } else {
            st.high = st.key;
            st.above_high = count;
        }
        break;
    case SELECT:
        st.low = found;
        st.question = NUCLEUS;
        break;
    case NUCLEUS:
        if (p.top_p) st.most_mass = nucleus_limit(p.top_p, mass);
        if (st.bound > st.low) st.low = st.bound;
        if (has_min_p(p)) {
            // The greatest place below every token at the threshold or above it.
            u64 below = ((u64)rank_of(key_logit(top) + p.min_p_offset) << 32) - 1;
            if (below > st.low) st.low = below;
        }
        st.high = top;
        st.question = DRAW;
        break;
    case DRAW:
        st.pivot_1 = found;
        // With no limit every token above `low` is kept; after the search, too.
        st.question = st.round == MAX_ROUNDS || (st.most_tokens == NO_LIMIT && st.most_mass == NO_LIMIT)
                          ? DONE
                          : PIVOT_1;
        break;
    case PIVOT_1:
        st.question = kept ? DONE : PIVOT_2;
        break;
    case PIVOT_2:
        st.low = kept ? st.pivot_1 : st.key;
        st.high = kept ? st.key : st.high;
        st.round++;
        st.question = st.round < MAX_ROUNDS ? DRAW : BISECT;
        break;
    default:  // BISECT
        st.low = kept ? st.low : st.key;
        st.high = kept ? st.key : st.high;
        break;
    }
    if (st.question == KTH && st.above_low - st.above_high <= CANDIDATES) st.question = SELECT;
    if (st.question == BISECT && st.high - st.low <= 1) st.question = DRAW;
    middle = midpoint(st.question == PIVOT_2 ? st.pivot_1 : st.low, st.high);
    st.key = st.question == PIVOT_1                                                                  ? st.pivot_1
             : st.question == PIVOT_2 || st.question == KTH || st.question == BISECT ? middle
                                                                                     : st.low;
}

// The search is one loop with one place that counts, one that sums and one that draws: code of this size, inlined at
// every question, would not fit the registers.
template <typename T>
DEVICE u32 draw_inside(Search<T> &s, const RowParams &p, u64 top, u64 position) {
    Shared &st = *s.shared;
    bool renormalised = is_renormalised(p, s.vocab);
    u64 bound = has_top_k(p, s.vocab) ? kth_largest_slice(s, p.top_k) : LOWEST_KEY;
    if (thread_index() == 0) {
        st.question = renormalised ? MANY : NUCLEUS;
        st.key = st.low = renormalised ? bound : LOWEST_KEY;
        st.high = top;
        st.bound = bound;
        st.most_tokens = has_top_k(p, s.vocab) && !renormalised ? p.top_k : NO_LIMIT;
        st.most_mass = NO_LIMIT;
        st.above_low = st.above_high = 0;
        st.round = 0;
    }
    for (;;) {
        barrier();
        Question question = st.question;
        if (question == DONE) return key_id(st.pivot_1);
        u64 key = st.key, count = 0, mass = 0, found = 0;
        bool about_pivot = question >= PIVOT_1;
        if (question <= KTH || (about_pivot && st.most_tokens != NO_LIMIT)) count = count_above(s, key);
        bool sums = question == NUCLEUS ? p.top_p != 0 : about_pivot && st.most_mass != NO_LIMIT;
        if (question == DRAW || (sums && (question == NUCLEUS || count < st.most_tokens))) mass = mass_above(s, key);
        if (question == DRAW) found = draw_above(s, key, philox(p.seed, position, st.round));
        if (question == SELECT) found = select_kth(s, p.top_k - (u32)st.above_high, st.low, st.high);
        barrier();
        if (thread_index() == 0) next_question(st, p, top, count, mass, found);
    }
}

template <typename T>
DEVICE u32 draw_row(Search<T> &s, const RowParams &p, u64 position) {
    // The first token in the order is in the first slice with the largest logit.
    u64 best = 0;
    u64 nan = 0;
    for (u32 j = thread_index(); j < s.slices; j += BLOCK) {
        float most = s.largest[j];
        u64 key = most == most ? key_of(most, j) : 0;
        nan += most != most;
        best = key > best ? key : best;
    }
    nan = block_sum(nan, s.shared->scratch);
    best = block_max(best, s.shared->scratch);
    float most = key_logit(best);
    if (nan || most == NEG_INF) return INVALID_TOKEN;
    u64 top = first_token(s, key_id(best), most);
    if (p.flags & GREEDY || most == POS_INF) return key_id(top);

    Scale scale = {0.0f, p.scale, p.inverse};
    s.scale = measured_from(scale, most);
    s.unit = slice_scale(s.scale, most, NEGLIGIBLE).unit;
    if (wants_sums(p, s.vocab, s.slices) && s.scale.base == 0.0f) adopt_sums(s);
    return draw_inside(s, p, top, position);
}

template <typename T>
DEVICE void draw_of(const T *logits, i64 stride, u32 vocab, const RowParams *params, u64 *positions,
                    const float *largest, u64 *mass, u32 *ids) {
    SHARED Shared shared;
    u32 row = block_index();
    Search<T> s;
    s.row = logits + row * stride;
    s.vocab = vocab;
    s.slices = (vocab + SLICE - 1) / SLICE;
    s.largest = largest + (u64)row * s.slices;
    s.above = mass + (u64)row * s.slices;
    s.shared = &shared;
    if (thread_index() == 0) shared.above_key = 0;
    const RowParams &p = params[row];
    u64 position = positions[row];
    u32 id = draw_row(s, p, position);
    // Every thread has passed a barrier since it read the position.
    if (thread_index() == 0) {
        ids[row] = id;
        positions[row] = position + 1;
    }
}

#define SAMPLE_KERNELS(name, T)                                                                                       \
    KERNEL(BLOCK)                                                                                                     \
    slices_##name(const T *logits, i64 stride, u32 vocab, const RowParams *params, u32 shared_params,                 \
                  float *largest, u64 *mass) {                                                                        \
        slices_of<T>(logits, stride, vocab, params, shared_params, largest, mass);                                    \
    }                                                                                                                 \
    KERNEL(BLOCK)                                                                                                     \
    draw_##name(const T *logits, i64 stride, u32 vocab, const RowParams *params, u64 *positions,                      \
                const float *largest, u64 *mass, u32 *ids) {                                                          \
        draw_of<T>(logits, stride, vocab, params, positions, largest, mass, ids);                                     \
    }

SAMPLE_KERNELS(f32, float)
SAMPLE_KERNELS(f16, f16)
SAMPLE_KERNELS(bf16, bf16)
