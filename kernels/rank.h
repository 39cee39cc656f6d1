// A short list, as most are: its tokens are compared with each other all at once, and one wave walks them, in the order to find out which are kept, and by
// id to draw one.
//
// Where p is a share of the row's mass and that is known about (slice.h), one token may be open, kept or not: in 6 rows of 10,000, by simulation of real ones.
// Then that is looked at closely: mostly the same is drawn with it and without. Where it is not, 3 rows of 100,000, their masses are summed, and they are
// searched (search.h).
#pragma once
#include "row.h"

// A short list leaves room behind it, for what is known of its tokens.
struct Ranked {
    u64 masses[RANKED];   // of the tokens as they are listed
    u64 kept[RANKED];     // of those that are kept, ids ascending; of the others 0
    u32 by_rank[RANKED];  // which token, and in the upper half, which by id
    u32 by_id[RANKED];    // ids ascending
};
static_assert(sizeof(Ranked) <= (CAPACITY - RANKED) * 8, "room behind the keys");

// Places are laid out so that a lane has `each` next to each other, and the lanes' are read together.
template <u32 each>
DEVICE u32 room_of(u32 place) {
    return place % each * WAVE + place / each;
}

// What floats tell may be off by so many binary orders less than the row's mass: of what is above tries (above.h), and of that mass itself where it is
// known about (slice.h). Tests make the margins large, so that nothing is told.
#ifndef MARGIN_BITS
#define MARGIN_BITS 15
#endif
#define ABOUT_BITS (MARGIN_BITS + 2)

// Draws from ranked tokens: a lane has so many of the first ones, of which the filters keep no others, and of all by id. No token, if one is open;
// `closely`, if another would be drawn with it. One wave's.
template <u32 each, u32 each_id, bool closely>
DEVICE u32 draw_from_ranked(const Shared &shared, u32 flags, const u64 *keys, Ranked &ranked, u32 last) {
    u32 begin = lane_index() * each, token[each];
    u64 here[each], sum = 0, kept_mass = 0, limit = ~(u64)0, least = shared.least;
    // By min-p: of few tokens asked with their masses, of more where it is wanted, because registers are short.
    auto passes = [&](u32 c) { return begin + c < last && keys[token[c] & 0xffffu] > least; };
    u32 passing = 0;
    UNROLL for (u32 c = 0; c < each; c++) token[c] = begin + c < last ? ranked.by_rank[c * WAVE + lane_index()] : 0;
    UNROLL for (u32 c = 0; c < each; c++) {
        here[c] = begin + c < last ? ranked.masses[token[c] & 0xffffu] : 0;
        if (each == 2) passing |= (u32)passes(c) << c;
        sum += here[c];
    }
    u64 above = wave_prefix(sum) - sum;
    if (flags & MASS_ABOUT)
        limit = shared.limit;
    else if (flags & TOP_P)
        limit = nucleus_limit(shared.params.top_p, flags & RENORMALISED ? wave_sum(sum) : shared.whole);
    // Tokens that are kept if the row's mass is as much as it may be, not if it is as little.
    u32 open = 0;
    u64 first = above, open_key = 0, open_mass = 0;
    if (closely) {
        u64 margin = shared.whole >> ABOUT_BITS, through = above, most = nucleus_limit(shared.params.top_p, shared.whole + margin);
        limit = nucleus_limit(shared.params.top_p, shared.whole - margin);
        UNROLL for (u32 c = 0; c < each; c++) {
            bool is_open = begin + c < last && through >= limit && through < most;
            open += is_open;
            open_key = is_open ? keys[token[c] & 0xffffu] : open_key;
            open_mass = is_open ? here[c] : open_mass;
            through += here[c];
        }
        open = wave_sum(open);
    }
    UNROLL for (u32 c = 0; c < each; c++) {
        if (above < limit && (each == 2 ? passing >> c & 1 : passes(c))) {
            kept_mass += here[c];
            ranked.kept[room_of<each_id>(token[c] >> 16)] = here[c];
        }
        above += here[c];
    }
    bool is_open = false;
    if (!closely && flags & MASS_ABOUT) {
        // So much, p times the margin and what was rounded, the limit is off at most.
        u64 off = (shared.whole >> ABOUT_BITS) + 2, through = first - (limit - off);
        UNROLL for (u32 c = 0; c < each; c++) {
            is_open = is_open || (begin + c < last && through <= 2 * off);
            through += here[c];
        }
    }
    kept_mass = wave_sum(kept_mass);
    u64 x = mul_hi(shared.random[TRIES], kept_mass);
    wave_barrier();  // the sum is one already, but does not promise it
    sum = 0;
    u64 kept[each_id];
    UNROLL for (u32 c = 0; c < each_id; c++) {
        kept[c] = ranked.kept[c * WAVE + lane_index()];
        sum += kept[c];
    }
    u64 rest = x - (wave_prefix(sum) - sum);
    // Where the sum is not there yet, or was before, the rest is not less.
    bool drawn = rest < sum;
    u32 place = 0;
    UNROLL for (u32 c = 0; c + 1 < each_id; c++) {
        bool further = place == c && rest >= kept[c];
        rest -= further ? kept[c] : 0;
        place += further;
    }
    u32 id = wave_max(drawn ? ranked.by_id[place * WAVE + lane_index()] : 0);
    if (!closely && flags & MASS_ABOUT && vote(is_open)) id = INVALID_TOKEN;
    if (closely && uniform(open)) {
        // With one more kept, the same may be drawn.
        open_key = wave_max(open_key);
        open_mass = wave_max(open_mass);
        u64 begin_of = wave_max(drawn ? x - rest : 0), own = wave_max(drawn ? ranked.kept[place * WAVE + lane_index()] : 0);
        begin_of += key_id(open_key) < id ? open_mass : 0;
        if (open > 1 || mul_hi(shared.random[TRIES], kept_mass + open_mass) - begin_of >= own) id = INVALID_TOKEN;
    }
    return id;
}

// The same, however many there are. Each of the three gives `take` its token and ends there: a jump to where they meet would be over code that nobody has
// fetched.
template <bool closely, typename F>
DEVICE void draw_ranked(const Shared &shared, u32 flags, Ranked &ranked, u32 last, bool few_ids, bool few_ranks, F take) {
    const u64 *keys = shared.list.keys;
    if (few_ids)
        take(draw_from_ranked<2, 2, closely>(shared, flags, keys, ranked, last));
    else if (few_ranks)
        take(draw_from_ranked<2, RANKED / WAVE, closely>(shared, flags, keys, ranked, last));
    else
        take(draw_from_ranked<RANKED / WAVE, RANKED / WAVE, closely>(shared, flags, keys, ranked, last));
}

// The token, if there is one. One thread's.
DEVICE void place_if_sure(Shared &shared, u32 id) {
    shared.sure = id != INVALID_TOKEN;
    if (shared.sure) place_token(shared, id);
}

// The same where a token is open: writes the token, or says that this does not tell.
OUT_OF_LINE bool draw_closely(Shared &shared, u32 flags, Ranked &ranked, u32 last, bool few_ids, bool few_ranks) {
    if (wave_index() == 0) {
        u32 id;
        draw_ranked<true>(shared, flags, ranked, last, few_ids, few_ranks, [&](u32 token) { id = token; });
        if (lane_index() == 0) place_if_sure(shared, id);
    }
    // All have to know.
    barrier();
    if (!uniform(shared.sure)) return false;
    leave();
    return true;
}

// Two keys in one read.
struct alignas(16) Pair {
    u64 x[2];
};
#define PAIRS_AT_ONCE 2u

// Draws from a list of up to RANKED, and writes the token: each one's place in the order and among ids, by comparing it with all others; then one wave
// draws, and the others are done. False if an estimated list is too short, or the row's mass not known well enough.
template <typename T>
DEVICE bool draw_by_rank(Row<T> &row, bool estimated, u32 count) {
    Shared &shared = *row.shared;
    Candidates &list = shared.list;
    Ranked &ranked = *(Ranked *)(list.keys + RANKED);
    if (estimated && uniform(count < shared.params.top_k)) return false;
    // Tokens are weighed by the last threads, which have the fewest to compare.
    u32 weighed = BLOCK - 1 - thread_index();
    if (weighed < count) {
        u64 key = list.keys[weighed];
        ranked.masses[weighed] = unpack_mass(packed_mass(shared, key, shared.largest[key_id(key) / SLICE]));
    }
    if (thread_index() < RANKED) ranked.kept[thread_index()] = 0;
    // A team, of eight threads at most, has two tokens, and each of its threads compares them with a share of the others. Beyond the list there are
    // zeros, which are before none.
    u32 bits = count <= BLOCK / 4 ? 3 : count <= BLOCK / 2 ? 2 : 1, team = 1u << bits;
    u32 mine = thread_index() >> bits;
    static_assert(RANKED <= BLOCK, "a team for each two tokens");
    const Pair *pairs = (const Pair *)list.keys;
    u32 at = thread_index() & (team - 1);
    // The others are not kept, whatever they weigh.
    u32 ranks = row.flags & TOP_K && shared.params.top_k < count ? shared.params.top_k : count;
    // Without those that go by the order, none is needed.
    bool ordered = row.flags & (TOP_K | TOP_P);
    bool few_ids = uniform(count <= 2 * WAVE), few_ranks = uniform(ranks <= 2 * WAVE);
    if (uniform(wave_index() * WAVE >> bits) * 2 < count) {
        Pair own = pairs[mine];
        u32 by_key[2] = {0, 0}, by_id[2] = {0, 0};
        ROLLED for (u32 i = at; i * 2 < count; i += PAIRS_AT_ONCE * team) {
            Pair other[PAIRS_AT_ONCE];
            UNROLL for (u32 q = 0; q < PAIRS_AT_ONCE; q++) other[q] = pairs[i + q * team];
            if (ordered) {
                UNROLL for (u32 q = 0; q < 4 * PAIRS_AT_ONCE; q++)
                    count_larger(other[q / 4].x[q / 2 % 2], own.x[q % 2], &by_key[q % 2], &by_id[q % 2]);
            } else {
                UNROLL for (u32 q = 0; q < 4 * PAIRS_AT_ONCE; q++) by_id[q % 2] -= (u32)other[q / 4].x[q / 2 % 2] > (u32)own.x[q % 2];
            }
        }
        // Four counts of at most 255.
        u32 before = 0;
        UNROLL for (u32 c = 0; c < 2; c++) before += (0u - by_key[c]) << c * 8 | (0u - by_id[c]) << (16 + c * 8);
        UNROLL for (u32 mask = 1; mask < 8; mask *= 2) {
            u32 other = shuffle_xor(before, mask);
            before += mask < team ? other : 0;
        }
        u32 c = at & 1, place = before >> (16 + c * 8) & 0xffu, token = 2 * mine + c;
        u32 rank = ordered ? before >> c * 8 & 0xffu : token;
        bool some = at < 2 && token < count;
        u32 room_by_rank = few_ranks ? room_of<2>(rank) : room_of<RANKED / WAVE>(rank);
        u32 room_by_id = few_ids ? room_of<2>(place) : room_of<RANKED / WAVE>(place);
        write_if(some && rank < ranks, ranked.by_rank, room_by_rank, token | place << 16);
        write_if(some, ranked.by_id, room_by_id, key_id(c ? own.x[1] : own.x[0]));
    }
    barrier();
    bool about = row.flags & MASS_ABOUT;
    if (wave_index() == 0) {
        draw_ranked<false>(shared, row.flags, ranked, ranks, few_ids, few_ranks, [&](u32 token) {
            if (!about) return write_token(shared, token);
            if (lane_index() == 0) place_if_sure(shared, token);
        });
    } else if (!about) {
        leave();
    }
    if (!about) return true;
    barrier();
    if (uniform(shared.sure)) {
        leave();
        return true;
    }
    // Of what was kept, some may not be. And all have read that it is not sure.
    if (thread_index() < RANKED) ranked.kept[thread_index()] = 0;
    barrier();
    return draw_closely(shared, row.flags, ranked, ranks, few_ids, few_ranks);
}
