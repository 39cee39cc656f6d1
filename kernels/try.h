// Tries: tokens drawn from all, each of which is kept if little enough comes before it in the order. The slices' masses often tell at once that it
// is, and the largest logits of groups where they do not; otherwise it is summed (above.h).
#pragma once
#include "above.h"

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
        if (uniform(shared.slices <= SLOTS)) {
            // Beyond the slices there is -inf.
            UNROLL for (u32 j = t % DRAWING; j < SLOTS; j += DRAWING) {
                bool above = slices.largest[j] > threshold_in(drawn, j);
                mass += above ? slices.shares[j] : 0;
                count += above;
            }
        } else {
            ROLLED for (u32 j = t % DRAWING; j < shared.slices; j += DRAWING) {
                bool above = shared.largest[j] > threshold_in(drawn, j);
                mass += above ? share_of(shared, Ruler(shared), j) : 0;
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
        u32 weigh = lane / TRIES % 2;
        const Try &drawn = shared.tried.drawn[lane % TRIES];
        u64 most = 0, own = drawn.own[weigh], limit = limit_of(shared.params, shared.whole, weigh);
        UNROLL for (u32 i = 0; i < DRAWING_WAVES; i++) most += sums.bounds[lane % WORDS][i];
        bool judged = lane < WORDS && is_judged(flags, weigh);
        // What is not above it weighs no more than if all tokens weighed what it does, and what may have been rounded off: if p leaves out more, it is
        // reached before.
        bool far = judged && weigh == BY_MASS && (own + (1u << HEADROOM)) * shared.vocab + margin_of(shared) < shared.whole - limit;
        u32 refused = (u32)vote(lane < TRIES && drawn.key <= shared.least) | (u32)vote(far) >> BY_MASS * TRIES;
        u32 words = (u32)vote(judged && most - own >= limit) & ~(refused | refused << TRIES);
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
        Eight eight[EIGHTS_AT_ONCE];
        float largest[EIGHTS_AT_ONCE];
        UNROLL for (u32 q = 0; q < EIGHTS_AT_ONCE; q++) {
            u32 lane = start + q * BLOCK + lane_index();
            eight[q] = eight_of(shared.groups, lane < lanes ? lane : 0);
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
    UNROLL for (u32 d = 0; d < TRIES; d++) {
        u32 not_above = wave_sum(share_about(below[d], whole)), is_above = wave_sum(share_about(above[d], whole));
        shares = word == d ? not_above : word == TRIES + d ? is_above : shares;
    }
    if (lane < WORDS) sums.about[word][wave_index()] = shares;
    barrier();
    if (wave_index() == 0) {
        u64 not_above = mass_of_share(sum_of_waves(sums), whole), least = shuffle_xor_u64(not_above, TRIES), most = 0;
        u64 margin = margin_of(shared), limit = nucleus_limit(shared.params.top_p, whole);
        u32 d = lane % TRIES;
        UNROLL for (u32 i = 0; i < DRAWING_WAVES; i++) most += sums.bounds[BY_MASS * TRIES + d][i];
        most -= shared.tried.drawn[d].own[BY_MASS];
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
    draw_by_slices<T>(shared, row.block, shared.random, TRIES, whole, true, 0, shared.tried.drawn);
    bound_tries(shared, row.flags);
    bool by_groups = stage == TO_BE_BOUNDED && !(row.flags & TOP_K);
    if (by_groups && uniform(shared.tried.words != 0)) bound_by_groups(shared);
    if (uniform(shared.tried.words) == 0) return shared.part ? done() : draw_kept(shared);
    if (stage == BY_ITS_BLOCKS) return ASK;
    leave_to_be_asked(shared);
    return done();
}
