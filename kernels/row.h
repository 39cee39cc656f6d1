// A row after the first read: what is known of it, and the token where a sum is reached.
//
// A block that draws spends most of its time waiting, each instruction for the one before: so steps are few, and what one needs is asked for
// before it.
#pragma once
#include "candidates.h"
#include "groups.h"

#define INVALID_TOKEN 0xffffffffu

// How logits become masses of the row.
struct Ruler {
    Scale scale;
    u32 unit;  // of the row
};

DEVICE Ruler ruler_from(const RowParams &p, float most) {
    Scale scale = measured_from({0.0f, p.scale, p.inverse}, most);
    return {scale, unit_of(slice_scale(scale, most, NEGLIGIBLE))};
}

// What one launch has worked out, and the next would need again.
struct State : Ruler {
    u64 whole;  // the row's mass, where it is wanted
    u64 top;    // above which no token is
    u64 least;  // nothing at or below this place passes min-p
    u64 place;  // nor, while other places are sought, the other filters
    u64 kept_above;  // the place above which row.kept has the slices' masses
    // While a place is sought, of the tokens above `lowest` the last one to keep: it is above `bottom` (if anything is known to be)
    // and not above `ceiling`; the running sum over the tokens is to exceed x; and the pivots.
    u64 lowest, bottom, ceiling, low, high, x;
    u64 above_bottom, above_ceiling;
    u32 weigh;  // what is sought; neither, if nothing
    u32 looks;  // that have not told it
    u32 known;
    float least_slice;  // the smallest of the slices' largest logits, less those that are -inf
};

// A token drawn from all. Of the four that are read with it, those before it that tie with it are counted and weighed here, so that all tokens of a
// four are above it if they are above the same logit: this one, or in fours before its own the largest float below.
struct Try {
    u64 key;
    float logit, previous;
    u32 id, unused;
    u64 tied[2], own[2];  // count and mass: of those, and of the token itself
};

// A row's tries, and what is to be asked: a bit for each sum of which the slices do not tell whether it is too much, the count and the mass above each.
struct Tried {
    Try drawn[TRIES];
    u32 words;
    u32 kept;  // the first try without a doubt; TRIES if there is none
};

// What blocks of a row find together. A look from pivots: how many tokens are above the low one (above the high one, in the upper half), their
// masses, and how many are between; these are in row.wide, if they fit. Tries: how many tokens are above each, and their shares of the whole, as
// `conclude` (above.h) lays them out.
struct Tally {
    u64 counts;
    u64 masses[2];
    u64 above[2][TRIES];
    u32 listed;
    u32 looked;  // whether the row has been
    u32 queued;  // in that of the first row: of how many rows something is to be asked
    u32 unused;
};

// Of 32 bits.
#define STATE_WORDS (sizeof(State) / 4)
#define TRIED_WORDS (sizeof(Tried) / 4)
#define TALLY_WORDS (sizeof(Tally) / 4)
static_assert(TALLY_WORDS <= WAVE && STATE_WORDS + TALLY_WORDS <= BLOCK, "a thread copies a word");

// What blocks leave for each other in device memory: those that look at a row for the one that draws from it, and those that draw.
struct Wide {
    State state;
    Tally tally;
    Tried tried;
    u32 queue, unused;  // not this row's: one of those of which something is to be asked
    u64 keys[LISTED];
    u32 masses[LISTED];  // packed
};
// The host's room for it.
#define WIDE_WORDS 8544u
static_assert(sizeof(Wide) <= WIDE_WORDS * 8, "the host allocates it");

DEVICE GLOBAL Wide *wide_of(u64 *wide, u32 row) { return (GLOBAL Wide *)(wide + (u64)row * WIDE_WORDS); }

// How the places from low to high are divided into bins: at first as logits go, from the largest down, then in equal parts.
struct Division {
    float most, each;  // bins to a logit; 0 for equal parts
    float width;       // logits to a bin
    u64 low, high;
    u32 shift;  // 2^shift places are a part
};

// What a sample has below the bins, in all, and above the bins.
struct Outside {
    float below, all;
    u32 over;
};

// A row for a block, in shared memory.
struct Seen : State {
    Tally tally;
    const GLOBAL void *logits;
    u32 vocab, slices;
    const GLOBAL float *largest;  // of each slice
    const GLOBAL u8 *groups;      // of each group, how far it is below that
    GLOBAL u64 *mass;             // of each slice
    GLOBAL u64 *kept;             // of each slice, above a place; before a search, of rows with the flag PLACED, above two
    GLOBAL Wide *wide;
    RowParams params;
    Scratch scratch;
    Division division;
    Outside outside;
    // The sample below the pivots (aim.h).
    u32 count_below[2];
    float below_low;
    u32 hits;  // groups to read
    Tried tried;
    u64 random[TRIES + 1];  // 64 bits each: for the tries, then for the draw from what is kept
    u32 part, parts;  // of the row, that this block has
    bool last;        // of the row's blocks to add up what is above tries
    u64 refused;      // then, no token at this place or below is kept
};

// For the block that draws from it.
struct Shared : Seen {
    GLOBAL u32 *id;  // where the token goes
    GLOBAL u64 *next_position;
    u64 position;
    Candidates list;
    u64 shares[WAVES];  // of the row's mass, that the waves' slices have
    u32 slice_count;
    float bound;
    u64 limit;  // of the nucleus, where the row's mass is known about
    bool sure;  // that the token drawn from a list is right, though the row's mass is known about
};

// A thread's slices, one of every BLOCK: their largest logits, -inf where there is no slice, and masses, where they are wanted.
struct Mine {
    float largest[EACH];
    u64 mass[EACH];
};

DEVICE Mine mine_of(const float *largest, const u64 *mass, u32 slices, u32 flags) {
    u32 masses = wants_mass(flags) ? slices : 0;
    Mine mine;
    UNROLL for (u32 e = 0; e < EACH; e++) {
        u32 j = e * BLOCK + thread_index();
        mine.largest[e] = j < slices ? largest[j] : NEG_INF;
        mine.mass[e] = j < masses ? mass[j] : 0;
    }
    return mine;
}

DEVICE Mine mine_of(const Seen &seen, u32 flags) {
    return mine_of((const float *)seen.largest, (const u64 *)seen.mass, seen.slices, flags);
}

// The largest logit of one of the thread's slices, or of those further on.
DEVICE float largest_of_mine(const Mine &mine, const float *largest, u32 j) {
    float most = mine.largest[0];
    UNROLL for (u32 e = 1; e < EACH; e++) most = j < e * BLOCK ? most : mine.largest[e];
    return j < SLOTS ? most : largest[j];
}

// What a thread holds of it; the rest is in shared memory, because registers are short.
template <typename T>
struct Row {
    Shared *shared;
    Block block;
    u32 flags;  // of its parameters
    Mine mine;
    u64 placed;  // its slice's masses above two places, in rows with that flag
};

template <typename T>
DEVICE const T *logits_of(const Row<T> &row) {
    return (const T *)row.shared->logits;
}

DEVICE SliceScale scale_of(const Seen &seen, u32 j) { return slice_scale(seen.scale, seen.largest[j], NEGLIGIBLE); }

template <typename T>
DEVICE float largest_of_slice(const Row<T> &row, u32 j) {
    return largest_of_mine(row.mine, (const float *)row.shared->largest, j);
}

DEVICE u32 packed_mass(const Seen &seen, u64 key, float largest_of_slice) {
    SliceScale s = slice_scale(seen.scale, largest_of_slice, NEGLIGIBLE);
    return s.some ? pack_mass(weight(s, key_logit(key)), shift_of(s, seen.unit)) : 0;
}

// The tokens that a look has listed, for `crossing`.
DEVICE u64 key_at(const Seen &seen, u32 i) { return seen.wide->keys[i]; }
DEVICE u64 mass_at(const Seen &seen, u32 i) { return unpack_mass(seen.wide->masses[i]); }

// Gives the candidates their masses, each thread those that it will ask for first, and sums them.
template <typename T>
DEVICE u64 weigh_list(Row<T> &row) {
    Shared &shared = *row.shared;
    Candidates &list = shared.list;
    u32 count = uniform(list.count);
    u64 sum = 0;
    ROLLED for (u32 start = thread_index(); start < count; start += BLOCK * AT_ONCE) {
        u64 key[AT_ONCE];
        float largest[AT_ONCE];
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            key[q] = list.keys[start + q * BLOCK < count ? start + q * BLOCK : start];
            largest[q] = shared.largest[key_id(key[q]) / SLICE];
        }
        UNROLL for (u32 q = 0; q < AT_ONCE; q++) {
            if (start + q * BLOCK >= count) break;
            u32 mass = packed_mass(shared, key[q], largest[q]);
            list.masses[start + q * BLOCK] = mass;
            sum += unpack_mass(mass);
        }
    }
    return block_sum(row.block, sum);
}

// A slice's share of the row's mass.
DEVICE u64 share(const Ruler &ruler, float largest, u64 mass) {
    SliceScale s = slice_scale(ruler.scale, largest, NEGLIGIBLE);
    return s.some ? to_row_units(s, mass, ruler.unit) : 0;
}

DEVICE u64 share_of(const Seen &seen, const Ruler &ruler, u32 j) { return share(ruler, seen.largest[j], seen.mass[j]); }

// The shares of a thread's slices, and of those further on.
DEVICE u64 shares_of_thread(const Seen &seen, const Ruler &ruler, const Mine &mine) {
    u64 sum = 0;
    UNROLL for (u32 e = 0; e < EACH; e++) sum += share(ruler, mine.largest[e], mine.mass[e]);
    ROLLED for (u32 j = thread_index() + SLOTS; j < seen.slices; j += BLOCK) sum += share_of(seen, ruler, j);
    return sum;
}

// Leaves the row's mass.
template <typename T>
DEVICE void leave_whole(Row<T> &row, Ruler ruler) {
    u64 whole = block_sum(row.block, shares_of_thread(*row.shared, ruler, row.mine));
    if (thread_index() == 0) row.shared->whole = whole;
}

// Four tokens of slice `j` a thread, for the first threads of the block; -inf for the others.
template <typename T>
DEVICE void load_by_block(const Row<T> &row, u32 j, float *z) {
    u32 vocab = row.shared->vocab, first = thread_index() < SLICE / 4 ? j * SLICE + thread_index() * 4 : vocab;
    Four<T> four = read_four(logits_of(row), vocab, first);
    UNROLL for (u32 c = 0; c < 4; c++) z[c] = token_of(four, c);
}

// The row's first token equal to `value` (there is one, and none is larger): it is in the first slice whose largest logit that is.
template <typename T>
DEVICE u32 find_equal(Row<T> &row, float value) {
    u32 first = 0;
    ROLLED for (u32 j = thread_index(); j < row.shared->slices; j += BLOCK)
        if (largest_of_slice(row, j) == value) first = ~j > first ? ~j : first;
    block_maxes<1>(row.block, &first);
    u32 j = ~first;
    float z[4];
    load_by_block(row, j, z);
    u32 place = z[0] == value ? 0 : z[1] == value ? 1 : z[2] == value ? 2 : z[3] == value ? 3 : SLICE;
    u32 found = place < 4 ? SLICE - (thread_index() * 4 + place) : 0;
    block_maxes<1>(row.block, &found);
    return j * SLICE + SLICE - found;
}

// The row's answer. One thread's, once: the host may take it as soon as it is there.
DEVICE void place_token(const Shared &shared, u32 id) {
    write_for_host(shared.id, id);
    *shared.next_position = shared.position + 1;
}

// The same as the last thing that is done.
DEVICE void write_token(const Shared &shared, u32 id) {
    if (thread_index() == 0) place_token(shared, id);
    leave();
}

// Leaves the slices' masses once more: where the first read's are void, far from zero, or known about, and the row is so that this does not tell. Has
// a barrier at the end.
template <typename T>
DEVICE void sum_again(Row<T> &row) {
    ROLLED for (u32 j = wave_index(); j < row.shared->slices; j += WAVES) {
        SliceScale s = scale_of(*row.shared, j);
        Vector<T> vectors[VECTORS];
        load_slice(logits_of(row), row.shared->vocab, j, vectors);
        u64 sum = s.some ? mass_of(vectors, s) : 0;
        if (lane_index() == 0) row.shared->mass[j] = sum;
    }
    barrier();
    row.flags &= ~PLACED;
    row.mine = mine_of(*row.shared, row.flags);
}
