// Whether barriers order what the threads of a block do in shared memory: what racecheck asks on a GPU, without one.
//
// The compiler calls a function at each read and write (-fsanitize=thread). Ours (races.cpp) stand in for ThreadSanitizer's, which knows half as many
// threads as a block has. Without -DRACES nobody asks.
#pragma once
#include <stddef.h>

#ifdef RACES
// These bytes are shared by the threads of a block.
void watch_shared_memory(const void *begin, size_t bytes);
// From now on it is this thread that reads and writes.
void now_runs(unsigned thread);
// The lanes of a wave, or the threads of the block, have waited for each other.
void wave_has_met(unsigned wave);
void block_has_met();
#else
inline void watch_shared_memory(const void *, size_t) {}
inline void now_runs(unsigned) {}
inline void wave_has_met(unsigned) {}
inline void block_has_met() {}
#endif
