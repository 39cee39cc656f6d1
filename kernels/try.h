// Tries: tokens drawn from all, each of which is kept if little enough comes before it in the order. The slices' masses often tell at once that it
// is, more often where they are divided (few rows), and the largest logits of groups where they do not (many); otherwise it is summed (above.h).
#pragma once
#include "above.h"

// What a slice tells of tries: its largest logit, and shares of the row's mass, all of the slice's and what is above its near and its far place.
struct Told {
    float largest;
    u32 all, near, far;
};

// `placed` as the first read has left it, if the flags say so: few rows'.
DEVICE Told told_of(const Ruler &ruler, float largest, u64 mass, u64 placed, u32 flags, u64 whole) {
    SliceScale s = slice_scale(ruler.scale, largest, NEGLIGIBLE);
    // A share is a mass of the slice without so many bits, once it has four more: it may have to be shifted the other way.
    u32 down = orders_down(s, ruler.unit) + share_unit(whole) + 4 - HEADROOM;
    auto share = [&](u64 mass) { return s.some && down < 64 ? (u32)(mass << 4 >> down) : 0; };
    u32 all = share(mass);
    if (ROWS != FEW_ROWS || !(flags & PLACED)) return {largest, all, all, all};
    return {largest, all, share((u64)(u32)placed << PLACED_BITS), share(placed >> 32 << PLACED_BITS)};
}

// What is told of a row's tries: how much may be above each, and how much is at least, where masses are divided; or how many tokens may be, for a top k.
struct Bounds {
    u32 most[TRIES], other[TRIES];
};

// Adds slice `j`. Above a try it has at most what it holds, or what is above a place that is not above the try, and nothing if it does not reach above; at least
// what is above a place that is not below the try. The most includes the try itself, in its own slice. `order` is infinite where there are no places.
DEVICE void add_slice(const Shared &shared, u32 flags, float order, u32 j, Told slice, Bounds &bounds) {
    UNROLL for (u32 d = 0; d < TRIES; d++) {
        const Try &drawn = shared.tried.drawn[d];
        float threshold = drawn.id >= j * SLICE ? drawn.previous : drawn.logit;
        u32 most = slice.all, least = 0;
        if (ROWS == FEW_ROWS) {
            bool in_near = threshold >= place_below(slice.largest, NEAR_ORDERS, order), in_far = threshold >= place_below(slice.largest, FAR_ORDERS, order);
            most = in_near ? slice.near : in_far ? slice.far : slice.all;
            least = in_near ? 0 : in_far ? slice.near : slice.far;
        }
        bool above = slice.largest > threshold;
        bounds.most[d] += above ? most : 0;
        bounds.other[d] += flags & TOP_K ? above * SLICE : least;
    }
}

// What the slices tell of the tries. Leaves the first without a doubt, and what is to be asked of those before it. Has a barrier at the end.
template <typename T>
DEVICE void bound_tries(const Row<T> &row, const Ruler &ruler, const Told *told) {
    Shared &shared = *row.shared;
    Sums &sums = sums_of(shared);
    u32 flags = row.flags, t = opaque(thread_index()), lane = t % WAVE, word = lane % WORDS, shares = 0;
    // Others have no slices.
    if (uniform(wave_index() * WAVE < shared.slices)) {
        float order = ROWS == FEW_ROWS && flags & PLACED ? shared.params.inverse : POS_INF;
        Bounds bounds = {};
        UNROLL for (u32 e = 0; e < EACH; e++) add_slice(shared, flags, order, e * BLOCK + t, told[e], bounds);
        if (uniform(shared.slices > SLOTS)) {
            ROLLED for (u32 j = SLOTS + t; j < shared.slices; j += BLOCK) {
                u64 placed = ROWS == FEW_ROWS && flags & PLACED ? shared.kept[j] : 0;
                add_slice(shared, flags, order, j, told_of(ruler, shared.largest[j], shared.mass[j], placed, flags, shared.whole), bounds);
            }
        }
        // A lane has a word.
        UNROLL for (u32 d = 0; d < TRIES; d++) {
            u32 other = wave_sum(bounds.other[d]), most = wave_sum(bounds.most[d]);
            shares = word == d ? other : word == TRIES + d ? most : shares;
        }
    }
    if (lane < WORDS) sums.about[word][wave_index()] = shares;
    // One wave, which mostly has no slices, works out meanwhile what it will need.
    bool judges = wave_index() == WAVES / 4 * 3, count = lane / TRIES % 2 == BY_COUNT, judged = false;
    u64 whole = 0, margin = 0, limit = 0, own = 0;
    u32 refused = 0;
    if (judges) {
        const Try &drawn = shared.tried.drawn[lane % TRIES];
        whole = shared.whole;
        margin = margin_of(shared);
        // Words for a top k have its limit; without one, they have the least above.
        limit = limit_of(shared.params, whole, count && flags & TOP_K ? BY_COUNT : BY_MASS);
        own = drawn.own[lane / TRIES % 2];
        judged = lane < WORDS && is_judged(flags, lane / TRIES % 2);
        // What is not above it weighs no more than if all tokens weighed what it does, and what may have been rounded off: if p leaves out more, it is
        // reached before.
        bool far = judged && !count && (own + (1u << HEADROOM)) * shared.vocab + margin < whole - limit;
        refused = opaque((u32)vote(lane < TRIES && drawn.key <= shared.least) | (u32)vote(far) >> BY_MASS * TRIES);
    }
    barrier();
    if (judges) {
        u32 sum = sum_of_waves(sums);
        u64 mass = mass_of_share(sum, whole), most = (count ? sum : mass + margin) - own;
        refused |= (u32)vote(lane < TRIES && (flags & (TOP_K | TOP_P)) == TOP_P && mass >= limit + margin);
        u32 words = (u32)vote(judged && most >= limit) & ~(refused | refused << TRIES);
        if (lane >= TRIES && lane < WORDS) sums.most[lane - TRIES] = most;
        settle(shared, ~(words | words >> TRIES | refused) & EACH_TRY, words, TRIES);
    }
    barrier();
}

// Of groups, to a lane: enough for 150,000 tokens at once.
#define EIGHTS_AT_ONCE (BLOCK == 256 ? 5u : 3u)

// What the groups' largest logits tell of the tries whose mass is in doubt: of the slices that reach above a try, at least the largest tokens of
// those groups that do not are not above it, and the largest of those that do are. They are bounds, so a little error does no harm. For rows
// without top-k. Has a barrier at the end.
DEVICE void bound_by_groups(Shared &shared) {
    const u32 lanes_of_slice = GROUPS / 8;
    Sums &sums = sums_of(shared);
    u32 asked = uniform(shared.tried.words) >> BY_MASS * TRIES, kept = uniform(shared.tried.kept), lanes = shared.slices * lanes_of_slice;
    u64 whole = shared.whole;
    About about = about_of(shared);
    float below[TRIES] = {}, above[TRIES] = {};
    ROLLED for (u32 start = opaque(wave_index() * WAVE); start < lanes; start += EIGHTS_AT_ONCE * BLOCK) {
        Drops<8> eight[EIGHTS_AT_ONCE];
        float largest[EIGHTS_AT_ONCE];
        UNROLL for (u32 q = 0; q < EIGHTS_AT_ONCE; q++) {
            u32 lane = start + q * BLOCK + lane_index();
            eight[q] = drops_of<8>(shared.groups, lane < lanes ? lane : 0);
            largest[q] = lane < lanes ? shared.largest[lane / lanes_of_slice] : NEG_INF;
        }
        UNROLL for (u32 q = 0; q < EIGHTS_AT_ONCE; q++) {
            u32 j = (start + q * BLOCK + lane_index()) / lanes_of_slice;
            if (start + q * BLOCK >= lanes) break;
            float slice = largest[q], ends[8], weights[8];
            float orders = fma_f32(DROP_OFFSET, about.scale, orders_about(about, slice));
            UNROLL for (u32 c = 0; c < 8; c++) {
                ends[c] = end_of_drop(eight[q].drops[c]);
                weights[c] = exp2_about(fma_f32(-ends[c], about.scale, orders));
            }
            UNROLL for (u32 d = 0; d < TRIES; d++) {
                if (!(asked >> d & 1)) continue;
                Drawn drawn = drawn_of(shared.tried.drawn[opaque(d)]);
                // Whoever has the drop that the try would have may be above it or not.
                float threshold = threshold_in(drawn, j), own = end_of_drop(drop_of(slice, threshold)), not_above = 0.0f, is_above = 0.0f;
                UNROLL for (u32 c = 0; c < 8; c++) {
                    add_if_above(not_above, ends[c], own, weights[c]);
                    add_if_above(is_above, own, ends[c], weights[c]);
                }
                below[d] += slice > threshold ? not_above : 0.0f;
                above[d] += slice > threshold ? is_above : 0.0f;
            }
        }
    }
    // A lane has a word: of each try, what is not above it, and then what is.
    u32 lane = opaque(thread_index()) % WAVE, word = lane % WORDS, shares = 0;
    float share = shares_about(whole);
    UNROLL for (u32 d = 0; d < TRIES; d++) {
        u32 not_above = wave_sum(round_u32(below[d] * share)), is_above = wave_sum(round_u32(above[d] * share));
        shares = word == d ? not_above : word == TRIES + d ? is_above : shares;
    }
    if (lane < WORDS) sums.about[word][wave_index()] = shares;
    barrier();
    if (wave_index() == 0) {
        u64 not_above = mass_of_share(sum_of_waves(sums), whole), least = shuffle_xor_u64(not_above, TRIES);
        u64 margin = margin_of(shared), limit = nucleus_limit(shared.params.top_p, whole);
        u32 d = lane % TRIES;
        u64 most = sums.most[d];
        bool open = lane < TRIES && asked >> d & 1 && least < limit + margin;
        bool surely = most + margin - (not_above < most ? not_above : most) < limit;
        settle(shared, (u32)vote(open && surely), (u32)vote(open && !surely) << BY_MASS * TRIES, kept);
    }
    barrier();
}

// What is left to do with a row: nothing; to ask for what is above its tries; to search for what is kept, after tries or without.
enum Next { DONE, ASK, SEARCH_AFTER_TRIES, SEARCH };

// Nothing, for this thread.
DEVICE Next done() {
    leave();
    return DONE;
}

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
    if (!uniform(shared.last)) return done();
    if (uniform(shared.tried.words) != 0) {
        sum_exactly<T>(shared);
        if (wave_index() == 0) {
            u32 mine = opaque(thread_index()) % TRIES;
            u64 above = 0;
            ROLLED for (u32 wave = 0; wave < WAVES; wave++) above += sums_of(shared).exact[mine][wave];
            judge_tries(shared, above, limit_of_lane(shared), 0);
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
    Told told[EACH];
    UNROLL for (u32 e = 0; e < EACH; e++) told[e] = told_of(ruler, row.mine.largest[e], row.mine.mass[e], row.placed, row.flags, whole);
    draw_by_slices<T>(shared, row.block, shared.random, TRIES, whole, true, 0, shared.tried.drawn);
    bound_tries(row, ruler, told);
    bool by_groups = ROWS != FEW_ROWS && stage == TO_BE_BOUNDED && !(row.flags & TOP_K);
    if (by_groups && uniform(shared.tried.words != 0)) bound_by_groups(shared);
    if (uniform(shared.tried.words) == 0) return shared.part ? done() : draw_kept(shared);
    if (ROWS == FEW_ROWS || stage == BY_ITS_BLOCKS) return ASK;
    leave_to_be_asked(shared);
    return done();
}
