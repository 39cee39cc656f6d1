// The draw: inverse CDF, ids ascending. From the slices' masses, or from a list of candidates after the filters have had their say.
#pragma once
#include "gather.h"
#include "rank.h"
#include "read.h"

// What draws need of the slices, where the masses of candidates will be. They are divided into runs, of one slice each if there are no more than
// SLOTS.
struct Slices {
    u64 before[SLOTS];  // the sum of the runs before this one
    u64 heads[WAVE];    // the same of every so many runs, next to each other
    u64 total;
};
#define RUNS_OF_HEAD (SLOTS / WAVE)
static_assert(sizeof(Slices) <= CAPACITY * 4, "room where masses will be");

DEVICE Slices &slices_of(Shared &shared) { return *(Slices *)shared.list.masses; }

// Sums the slices: all of their mass, or the part that is kept (row.kept). Has a barrier at the end.
template <typename T>
DEVICE u64 sum_slices(Row<T> &row, const Ruler &ruler, bool all) {
    Shared &shared = *row.shared;
    Slices &slices = slices_of(shared);
    u32 t = opaque(thread_index()), run = (shared.slices + SLOTS - 1) / SLOTS;
    u64 sums[EACH], sum_of_thread = 0;
    UNROLL for (u32 e = 0; e < EACH; e++) {
        u32 i = e * BLOCK + t;
        u64 sum = 0;
        if (all && run == 1) {
            sum = share(ruler, row.mine.largest[e], row.mine.mass[e]);
        } else {
            u32 last = (i + 1) * run < shared.slices ? (i + 1) * run : shared.slices;
            ROLLED for (u32 j = i * run; j < last; j++) sum += all ? share_of(shared, ruler, j) : shared.kept[j];
        }
        sums[e] = sum;
    }
    // From here on a thread has runs next to each other.
    if (EACH > 1) {
        UNROLL for (u32 e = 0; e < EACH; e++) slices.before[e * BLOCK + t] = sums[e];
        barrier();
        UNROLL for (u32 e = 0; e < EACH; e++) sums[e] = slices.before[t * EACH + e];
    }
    UNROLL for (u32 e = 0; e < EACH; e++) sum_of_thread += sums[e];
    u64 before = block_prefix(row.block, sum_of_thread);
    UNROLL for (u32 e = 0; e < EACH; e++) {
        u32 i = t * EACH + e;
        slices.before[i] = before;
        if (i % RUNS_OF_HEAD == 0) slices.heads[i / RUNS_OF_HEAD] = before;
        before += sums[e];
    }
    if (t == BLOCK - 1) {
        slices.total = before;
        if (all) shared.whole = before;
    }
    barrier();
    return slices.total;
}

// So many threads draw a token, of whose slice each has four; of many rows, whose blocks take each other's time, half as many have eight.
#define FOURS_DRAWN (ROWS == MANY_ROWS ? 2u : 1u)
#define TOKENS_DRAWN (4 * FOURS_DRAWN)
#define DRAWING (SLICE / TOKENS_DRAWN)
#define DRAWING_WAVES (DRAWING / WAVE)

// Draws so many tokens, with a random number each: of all, or of those above `low`. `total` is what sum_slices has found. Has a barrier at the end.
template <typename T>
DEVICE void draw_by_slices(Shared &seen, Block &b, const u64 *random, u32 draws, u64 total, bool all, u64 low, Try *drawn) {
    const Slices &slices = slices_of(seen);
    u64 *sums = next_words(b);
    static_assert(BLOCK % DRAWING == 0 && WAVES <= WAVE, "threads for each draw, a lane for each wave");
    u32 t = opaque(thread_index()), wave = t / WAVE, lane = t % WAVE, run = (seen.slices + SLOTS - 1) / SLOTS;
    // As many at once as there are threads for.
    ROLLED for (u32 begin = 0; begin < draws; begin += BLOCK / DRAWING) {
        u32 d = begin + t / DRAWING, first = 0;
        Shift shift = {0, 0};
        float z[TOKENS_DRAWN] = {};
        u64 mass[TOKENS_DRAWN] = {}, sum = 0, target = 0, before = 0;
        if (uniform(d < draws)) {
            u64 rest = mul_hi(random[d], total);
            // The last run that does not begin later: first among the heads, which are apart because threads that read one in so many would all
            // read the same bank.
            u32 at = highest_bit(vote(slices.heads[lane] <= rest)) * RUNS_OF_HEAD;
            at += highest_bit(vote(lane < RUNS_OF_HEAD && slices.before[at + lane % RUNS_OF_HEAD] <= rest));
            rest -= slices.before[at];
            u32 j = at * run;
            ROLLED for (; run > 1; j++) {
                u64 mass = all ? share_of(seen, Ruler(seen), j) : seen.kept[j];
                if (uniform(rest < mass)) break;
                rest -= mass;
            }
            first = j * SLICE + t % DRAWING * TOKENS_DRAWN;
            Four<T> four[FOURS_DRAWN];
            u32 firsts[FOURS_DRAWN];
            UNROLL for (u32 q = 0; q < FOURS_DRAWN; q++) firsts[q] = first + q * 4;
            read_fours<FOURS_DRAWN>((const T *)seen.logits, seen.vocab, firsts, four);
            SliceScale s = scale_of(seen, j);
            shift = shift_of(s, seen.unit);
            // The running sum, of all weights in the slice's unit or of the masses of the tokens above `low`, is to reach this.
            target = all ? first_above(s, rest, seen.unit) : rest + 1;
            UNROLL for (u32 c = 0; c < TOKENS_DRAWN; c++) {
                z[c] = token_of(four[c / 4], c % 4);
                u32 w = weight(s, z[c]);
                mass[c] = all ? w : key_of(z[c], first + c) > low ? unpack_mass(pack_mass(w, shift)) : 0;
                sum += mass[c];
            }
            before = wave_prefix(sum);
            if (lane == WAVE - 1) sums[t / WAVE] = before;
            before -= sum;
        }
        barrier();
        UNROLL for (u32 i = 1; i < DRAWING_WAVES; i++) before += wave % DRAWING_WAVES >= i ? sums[wave - i] : 0;
        if (before < target && before + sum >= target) {
            const u32 last = TOKENS_DRAWN - 1;
            u32 c = 0, w = (u32)mass[last];
            float logit = z[last];
            UNROLL for (u32 i = 0; i < last; i++) {
                before += mass[i];
                c += before < target;
            }
            UNROLL for (u32 i = last; i-- > 0;) {
                logit = c == i ? z[i] : logit;
                w = c == i ? (u32)mass[i] : w;
            }
            u64 key = key_of(logit, first + c), own = unpack_mass(pack_mass(w, shift));
            // Those of its four that tie with it weigh the same.
            u32 ties = 0;
            UNROLL for (u32 i = 0; i < last; i++) ties += i < c && i / 4 == c / 4 && z[i] == logit;
            drawn[d] = {key, logit, key_previous(key), first + c, 0, {ties, ties * own}, {1, own}};
        }
        barrier();
    }
}

// Draws one token, of all or of those above `low`.
template <typename T>
DEVICE u32 draw_one(Row<T> &row, const Ruler &ruler, bool all, u64 low) {
    Shared &shared = *row.shared;
    u64 total = sum_slices(row, ruler, all);
    draw_by_slices<T>(shared, row.block, shared.random + TRIES, 1, total, all, low, shared.tried.drawn);
    return shared.tried.drawn[0].id;
}

// The questions in turn, to a list of all tokens above `low`, those that can be kept among them: which is the k-th, which the last of the
// nucleus, which is drawn? That is written. `kept` is the mass above `low`, or 0 if it is not known. False if `low`, an estimate, turns out to be too
// high.
template <typename T>
DEVICE bool draw_from_many(Row<T> &row, bool estimated, u64 low, u64 kept) {
    enum { KTH, NUCLEUS, DRAWN };
    Candidates &list = row.shared->list;
    const RowParams &p = row.shared->params;
    ROLLED for (u32 ask = row.flags & TOP_K ? KTH : row.flags & TOP_P ? NUCLEUS : DRAWN; ask <= DRAWN; ask++) {
        u64 x = p.top_k - 1;
        if (ask == KTH && uniform(list.count <= x)) {
            if (estimated) return false;
            continue;
        }
        if (ask == NUCLEUS && !(row.flags & TOP_P)) continue;
        if (ask == DRAWN && uniform(row.shared->least > low)) {
            low = row.shared->least;
            kept = 0;
        }
        if (ask != KTH && uniform(kept == 0)) kept = mass_above(list, row.block, low);
        if (ask == NUCLEUS) {
            u64 limit = nucleus_limit(p.top_p, row.flags & RENORMALISED ? kept : row.shared->whole);
            if (uniform(kept < limit)) continue;
            x = limit - 1;
        }
        if (ask == DRAWN) x = mul_hi(row.shared->random[TRIES], kept);
        u64 bottom = ask == DRAWN ? ~row.shared->vocab : low, top = ask == DRAWN ? 0xffffffffu : row.shared->top;
        Sequence order = ask == DRAWN ? BY_ID : BY_KEY;
        Weigh weigh = ask == KTH ? BY_COUNT : BY_MASS;
        Crossing found = crossing<1>(list, uniform(list.count), list, row.block, order, weigh, low, bottom, top, x);
        if (ask == DRAWN) write_token(*row.shared, key_id(found.key));
        low = found.key - 1;
        kept = ask == NUCLEUS ? found.through : 0;
    }
    return true;
}

// The same whatever the list's length. False where that, or the row's mass, is not known well enough.
template <typename T>
DEVICE bool draw_from_list(Row<T> &row, u32 length, bool estimated, u64 low, u64 kept) {
    u32 k = row.shared->params.top_k;
    // Of a list that is long for a small top k, less will do.
    if (row.flags & (BY_SLICES | BY_GROUPS) && !estimated && length > k + MORE_THAN_K) length = shorten(row, length, k, key_logit(low));
    if (length <= RANKED) return draw_by_rank(row, estimated, length);
    // Of so many, several may be kept or not.
    if (row.flags & MASS_ABOUT) return false;
    if (!estimated) kept = weigh_list(row);
    return draw_from_many(row, estimated, low, kept);
}
