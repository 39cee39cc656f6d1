// The draw: inverse CDF, ids ascending. From the slices' masses, or from a list of candidates after the filters have had their say.
#pragma once
#include "read.h"
#include "row.h"

// Of all tokens, by the slices' shares of the row's mass, or of those above `low`, by row.kept.
template <typename T>
DEVICE u32 draw_by_slices(Row<T> &row, bool all, u64 low) {
    Shared &shared = *row.shared;
    // Each thread sums a run of slices; the thread whose run holds r walks it.
    u32 run = (shared.slices + BLOCK - 1) / BLOCK, first = thread_index() * run;
    u32 last = first + run < shared.slices ? first + run : shared.slices;
    u64 sum = 0, total;
    ROLLED for (u32 j = first; j < last; j++) sum += all ? share_of(shared, j) : shared.kept[j];
    u64 before = block_prefix(row.block, sum, &total), r = mul_hi(shared.random, total);
    if (before <= r && r - before < sum) {
        u64 rest = r - before;
        u32 drawn = first;
        ROLLED for (;; drawn++) {
            u64 mass = all ? share_of(shared, drawn) : shared.kept[drawn];
            if (rest < mass) break;
            rest -= mass;
        }
        shared.result[0] = drawn;
        shared.result[1] = rest;
    }
    barrier();
    u32 drawn = (u32)shared.result[0];
    u64 rest = shared.result[1];
    return find_sum(row, drawn, all, low, all ? first_above(scale_of(shared, drawn), rest, shared.unit) : rest + 1);
}

// The questions in turn, to a list of all tokens above `low`, those that can be kept among them: which is the k-th, which the last of the
// nucleus, which is drawn? `kept` is the mass above `low`, or 0 if it is not known. False if `low`, an estimate, turns out to be too high.
template <typename T>
DEVICE bool draw_from_many(Row<T> &row, const RowParams &p, bool estimated, u64 low, u64 kept, u32 *id) {
    enum { KTH, NUCLEUS, DRAWN };
    Candidates &list = row.shared->list;
    ROLLED for (u32 ask = has_top_k(p, row.shared->vocab) ? KTH : has_top_p(p) ? NUCLEUS : DRAWN; ask <= DRAWN; ask++) {
        u64 x = p.top_k - 1;
        if (ask == KTH && uniform(list.count <= x)) {
            if (estimated) return false;
            continue;
        }
        if (ask == NUCLEUS && !has_top_p(p)) continue;
        if (ask == DRAWN && uniform(row.shared->least > low)) {
            low = row.shared->least;
            kept = 0;
        }
        if (ask != KTH && uniform(kept == 0)) kept = mass_above(list, row.block, low);
        if (ask == NUCLEUS) {
            u64 limit = nucleus_limit(p.top_p, is_renormalised(p, row.shared->vocab) ? kept : row.shared->whole);
            if (uniform(kept < limit)) {
                if (estimated && !has_top_k(p, row.shared->vocab)) return false;
                continue;
            }
            x = limit - 1;
        }
        if (ask == DRAWN) x = mul_hi(row.shared->random, kept);
        u64 bottom = ask == DRAWN ? ~row.shared->vocab : low, top = ask == DRAWN ? 0xffffffffu : row.shared->top;
        Sequence order = ask == DRAWN ? BY_ID : BY_KEY;
        Weigh weigh = ask == KTH ? BY_COUNT : BY_MASS;
        Crossing found = crossing<1>(list, uniform(list.count), list, row.block, order, weigh, low, bottom, top, x);
        *id = key_id(found.key);
        low = found.key - 1;
        kept = ask == NUCLEUS ? found.through : 0;
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

// The same whatever the list's length.
template <typename T>
DEVICE bool draw_from_list(Row<T> &row, const RowParams &p, bool estimated, u64 low, u64 kept, u32 *id) {
    if (uniform(row.shared->list.count <= FEW)) return draw_from_few(row, p, estimated, id);
    return draw_from_many(row, p, estimated, low, kept, id);
}
