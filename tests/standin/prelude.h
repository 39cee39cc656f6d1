// Compiled in front of the kernels. As one unit they come without #include, so nothing between portable.h's macros for
// GPUs and the first kernel would bring host.h; and host.h needs the integer types that portable.h is about to declare.
#pragma once
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#include "host.h"
#undef UNROLL

// A kernel that does without portable.h's KERNEL.
#define __global__
