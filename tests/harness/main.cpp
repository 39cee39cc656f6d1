// Runs cases from a file through the kernels: harness CASES ORDER_SEED [FILE LINE], results to standard output. FILE and
// LINE name a barrier that is to do nothing, so that a test can see what the kernels are without it.
//
// A case, little-endian, without padding:
//   u32 kind (0 sample, 1 softmax, 2 prefix sum), dtype (0 f32, 1 f16, 2 bf16, 3 u32), rows, vocab, params
//   i64 stride, offset   of the rows in the buffer, in elements
//   u64 elements         of the buffer
//   RowParams[params]    one a row to sample, one for a softmax
//   u64 position[rows]   to sample only
//   the buffer
// Results: the ids and the advanced positions, or the output's elements.
//
// Buffers are allocated to the element, so that AddressSanitizer sees a read or a write beside them.
#include <unistd.h>

#include <memory>

// The bytes of all buffers at first: device memory comes with whatever was in it.
#define FILLED 0xa5u

#include "machine.h"

#include "prefix_sum.hip"
#include "sample.hip"
#include "slices.hip"
#include "softmax.hip"

// LeakSanitizer cannot walk the fibers' stacks.
extern "C" const char *__asan_default_options() { return "detect_leaks=0"; }

template <typename T>
struct Buffer {
    std::unique_ptr<T[]> data;
    u64 count;

    explicit Buffer(u64 count) : data(new T[count]), count(count) { memset((void *)data.get(), FILLED, bytes()); }
    size_t bytes() const { return count * sizeof(T); }
    operator T *() { return data.get(); }
};

template <typename T>
static Buffer<T> read_buffer(FILE *file, u64 count) {
    Buffer<T> buffer(count);
    if (fread((void *)(T *)buffer, 1, buffer.bytes(), file) != buffer.bytes()) {
        fprintf(stderr, "the file of cases ends early\n");
        exit(2);
    }
    return buffer;
}

template <typename T>
static void write(Buffer<T> &buffer) {
    fwrite((T *)buffer, 1, buffer.bytes(), stdout);
}

struct Case {
    u32 kind, dtype, rows, vocab, params;
    i64 stride, offset;
    u64 elements;
};

// What a dtype's kernels are called.
template <typename T>
struct Kernels;
#define KERNELS(name, T)                                 \
    template <>                                          \
    struct Kernels<T> {                                  \
        static constexpr auto slices = slices_##name;    \
        static constexpr auto once = slices_once_##name; \
        static constexpr auto placed = slices_placed_##name; \
        static constexpr auto draw = draw_##name;        \
        static constexpr auto try_ = try_##name;         \
        static constexpr auto look = look_##name;        \
        static constexpr auto softmax = softmax_##name;  \
    };
KERNELS(f32, float)
KERNELS(f16, f16)
KERNELS(bf16, bf16)

// By the seed, so that every case is run each way: everything by one block of a row; looks and tries by several; tries asked for in another launch, but
// of few rows.
static enum { LAUNCHES, ONE_BLOCK, BLOCKS } way;

static u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

template <typename T>
static void sample(FILE *file, const Case &c) {
    Buffer<RowParams> params = read_buffer<RowParams>(file, c.params);
    Buffer<u64> positions = read_buffer<u64>(file, c.rows);
    Buffer<T> logits = read_buffer<T>(file, c.elements);
    u32 slices = ceil_div(c.vocab, SLICE);
    Buffer<float> largest(c.rows * slices);
    Buffer<u8> groups(c.rows * slices * GROUPS);
    Buffer<u64> mass(c.rows * slices);
    Buffer<u32> ids(c.rows);
    const T *first = logits + c.offset;
    // A slice a wave, or several; by either kernel, or that for few rows.
    u32 blocks = way == ONE_BLOCK ? ceil_div(slices, SLICES_PER_BLOCK) : 1, step = blocks * SLICES_PER_BLOCK;
    Buffer<u64> kept(c.rows * slices), wide((u64)c.rows * WIDE_WORDS);
    auto slices_of_row = ROWS == FEW_ROWS ? Kernels<T>::placed : way == ONE_BLOCK ? Kernels<T>::once : Kernels<T>::slices;
    launch(c.rows, blocks, READ_BLOCK,
           [&] { slices_of_row(first, c.stride, c.vocab, params, 0, step, largest, groups, mass, kept, wide); });
    // The look at rows that want one is two blocks' work, or left to the block that draws.
    u32 looking = way == ONE_BLOCK || c.vocab <= CAPACITY ? 0 : 2;
    if (looking) {
        launch(c.rows, looking, BLOCK, [&] {
            Kernels<T>::look(first, c.stride, c.vocab, params, largest, groups, mass, kept, wide, looking, 0);
        });
    }
    bool tries = false;
    for (u32 row = 0; row < c.rows; row++) tries = tries || params[row].flags & TRIED;
    auto draw = [&](u32 blocks, u32 blocks_a_row, u32 parts, u32 stage) {
        launch(blocks, blocks_a_row, BLOCK, [&] {
            Kernels<T>::try_(first, c.stride, c.vocab, params, positions, largest, groups, mass, kept, wide, looking != 0, ids, parts, stage);
        });
    };
    if (!tries) {
        launch(c.rows, 1, BLOCK, [&] {
            Kernels<T>::draw(first, c.stride, c.vocab, params, positions, largest, groups, mass, kept, wide, looking != 0, ids);
        });
    } else if (way == LAUNCHES && ROWS != FEW_ROWS) {
        draw(c.rows, 1, 1, TO_BE_BOUNDED);
        draw(c.rows * 2, 1, c.rows * 2, ASKED);
    } else {
        // As the host does, no more than there are slices.
        u32 blocks = way == ONE_BLOCK ? 1 : slices < 3 ? slices : 3;
        draw(c.rows, blocks, blocks, BY_ITS_BLOCKS);
    }
    write(ids);
    write(positions);
}

template <typename T>
static void softmax(FILE *file, const Case &c) {
    Buffer<RowParams> params = read_buffer<RowParams>(file, c.params);
    Buffer<T> logits = read_buffer<T>(file, c.elements);
    u32 slices = ceil_div(c.vocab, SLICE);
    Buffer<float> largest(c.rows * slices);
    Buffer<u8> groups(c.rows * slices * GROUPS);
    Buffer<u64> mass(c.rows * slices);
    Buffer<T> out((u64)c.rows * c.vocab);
    const T *first = logits + c.offset;
    u32 blocks = ceil_div(slices, SLICES_PER_BLOCK), step = blocks * SLICES_PER_BLOCK;
    launch(c.rows, blocks, READ_BLOCK, [&] { Kernels<T>::slices(first, c.vocab, c.vocab, params, 1, step, largest, groups, mass, nullptr, nullptr); });
    float scale = params[0].scale, inverse = params[0].inverse;
    launch(c.rows * ceil_div(slices, SLICES_PER_WRITER), 1, BLOCK,
           [&] { Kernels<T>::softmax(first, c.vocab, scale, inverse, largest, mass, out); });
    write(out);
}

template <typename T>
static void prefix_sum(FILE *file, const Case &c, void (*scan_chunks)(const T *, u32, T *),
                       void (*sum_totals)(const T *, u32, u32, T *), void (*add_before)(u32, const T *, T *)) {
    Buffer<T> in = read_buffer<T>(file, c.elements);
    u32 chunks = ceil_div(c.vocab, BLOCK);
    Buffer<T> out((u64)c.rows * c.vocab), before(c.rows * chunks);
    launch(c.rows * chunks, 1, BLOCK, [&] { scan_chunks(in + c.offset, c.vocab, out); });
    launch(ceil_div(c.rows, BLOCK), 1, BLOCK, [&] { sum_totals(out, c.vocab, c.rows, before); });
    launch(c.rows * chunks, 1, BLOCK, [&] { add_before(c.vocab, before, out); });
    write(out);
}

int main(int argc, char **argv) {
    FILE *file = argc == 3 || argc == 5 ? fopen(argv[1], "rb") : nullptr;
    if (!file) {
        fprintf(stderr, "usage: %s CASES ORDER_SEED [FILE LINE]\n", argv[0]);
        return 2;
    }
    u64 seed = strtoull(argv[2], nullptr, 10);
    way = (decltype(way))(seed % 3);
    start_machine(seed, argc == 5 ? Site{argv[3], atoi(argv[4])} : Site{"", 0});
    // Without a barrier a kernel may run for ever.
    if (argc == 5) alarm(20);
    for (int next; (next = fgetc(file)) != EOF;) {
        ungetc(next, file);
        Buffer<u32> sizes = read_buffer<u32>(file, 5);
        Buffer<i64> place = read_buffer<i64>(file, 2);
        Buffer<u64> elements = read_buffer<u64>(file, 1);
        Case c = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], place[0], place[1], elements[0]};
        switch (c.kind << 2 | c.dtype) {
        case 0: sample<float>(file, c); break;
        case 1: sample<f16>(file, c); break;
        case 2: sample<bf16>(file, c); break;
        case 4: softmax<float>(file, c); break;
        case 5: softmax<f16>(file, c); break;
        case 6: softmax<bf16>(file, c); break;
        case 8: prefix_sum<float>(file, c, scan_chunks_f32, sum_totals_f32, add_before_f32); break;
        case 11: prefix_sum<u32>(file, c, scan_chunks_u32, sum_totals_u32, add_before_u32); break;
        default: fprintf(stderr, "no kernel for kind %u, dtype %u\n", c.kind, c.dtype); return 2;
        }
    }
}
