// See races.h. Not compiled with -fsanitize=thread itself.
#include "races.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <vector>

enum Access { READ, WRITE, ATOMIC };

// Which waves did something to a word, and who was last, and where. Whether the lanes of its wave have met since, `turn` tells.
struct Last {
    unsigned waves;
    unsigned thread, turn;
    bool several;  // lanes of that wave, in that turn
    void *place;
};

// The kernels write nothing smaller side by side.
#define WORD 2

// What was done to a word since the block's threads met last, in their `round`.
struct Word {
    unsigned round;
    Last last[3];
};

struct Memory {
    uintptr_t begin, end;
    std::vector<Word> words;
};

static std::vector<Memory> memories;
static unsigned running, round_now = 1, turns[64];

void watch_shared_memory(const void *begin, size_t bytes) {
    memories.push_back({(uintptr_t)begin, (uintptr_t)begin + bytes, std::vector<Word>(bytes / WORD + 1)});
}
void now_runs(unsigned thread) { running = thread; }
void wave_has_met(unsigned wave) { turns[wave]++; }
void block_has_met() { round_now++; }

[[noreturn]] static void tell(const char *what, void *place, const Last &other) {
    fprintf(stderr, "race: %s, by thread %u, at\n", what, running);
    char command[100];
    snprintf(command, sizeof command, "addr2line -i -e /proc/%d/exe %p %p >&2", (int)getpid(), place, other.place);
    if (system(command)) fprintf(stderr, "%p and %p of the program\n", place, other.place);
    exit(3);
}

static bool is_of_this_turn(const Last &last) {
    return last.waves && last.thread / WAVE == running / WAVE && last.turn == turns[running / WAVE];
}

// Whether nothing orders that before what the running thread does now.
static bool is_open(const Last &last) {
    if (last.waves & ~(1u << running / WAVE)) return true;
    return is_of_this_turn(last) && (last.several || last.thread != running);
}

// A write after a write is no harm if it leaves the value as it is, which shows afterwards.
static struct {
    const void *address;
    unsigned bytes;
    char value[16];
    void *place;
    Last other;
} doubt;

static void settle_doubt() {
    const void *address = doubt.address;
    doubt.address = nullptr;
    if (address && memcmp(address, doubt.value, doubt.bytes)) tell("a write after a write", doubt.place, doubt.other);
}

static void note(const void *address, size_t bytes, Access access, void *place) {
    settle_doubt();
    for (Memory &memory : memories) {
        uintptr_t at = (uintptr_t)address;
        if (at < memory.begin || at >= memory.end) continue;
        at -= memory.begin;
        for (size_t i = at / WORD; i <= (at + bytes - 1) / WORD; i++) {
            Word &word = memory.words[i];
            if (word.round != round_now) word = {round_now, {}};
            Last *last = word.last;
            if (access != READ && is_open(last[READ])) tell("a write after a read", place, last[READ]);
            if (access == WRITE && is_open(last[WRITE]) && bytes <= sizeof doubt.value) {
                doubt = {address, (unsigned)bytes, {}, place, last[WRITE]};
                memcpy(doubt.value, address, bytes);
            } else if (is_open(last[WRITE])) {
                tell(access == READ ? "a read after a write" : "a write after a write", place, last[WRITE]);
            }
            if (access != ATOMIC && is_open(last[ATOMIC])) tell("a plain access after an atomic one", place, last[ATOMIC]);
            Last &mine = last[access];
            bool several = is_of_this_turn(mine) && (mine.several || mine.thread != running);
            mine = {mine.waves | 1u << running / WAVE, running, turns[running / WAVE], several, place};
        }
    }
}

// ---- What the compiler calls. -------------------------------------------------------------------------------------

#define PLACE __builtin_return_address(0)
#define ACCESSES(bytes)                                                                    \
    void __tsan_read##bytes(void *p) { note(p, bytes, READ, PLACE); }                      \
    void __tsan_write##bytes(void *p) { note(p, bytes, WRITE, PLACE); }                    \
    void __tsan_unaligned_read##bytes(void *p) { note(p, bytes, READ, PLACE); }            \
    void __tsan_unaligned_write##bytes(void *p) { note(p, bytes, WRITE, PLACE); }

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void *p, size_t bytes) { note(p, bytes, READ, PLACE); }
void __tsan_write_range(void *p, size_t bytes) { note(p, bytes, WRITE, PLACE); }
uint32_t __tsan_atomic32_fetch_add(volatile uint32_t *p, uint32_t x, int) {
    note((const void *)p, 4, ATOMIC, PLACE);
    uint32_t before = *p;
    *p = before + x;
    return before;
}
uint64_t __tsan_atomic64_fetch_add(volatile uint64_t *p, uint64_t x, int) {
    note((const void *)p, 8, ATOMIC, PLACE);
    uint64_t before = *p;
    *p = before + x;
    return before;
}
// The machine's own, of which nothing is shared.
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
uint8_t __tsan_atomic8_load(const volatile uint8_t *p, int) { return *p; }
}
