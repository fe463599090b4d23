// The one place that knows of threads and of scratch memory. Plain functions: nothing here is compiled per instruction set.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace gossamer {

// How many of the threads asked for are of use: at least 1, and no more than processors unless those are few.
int usable_threads(int threads);

// Runs body(argument, thread, threads) in a team; the team may be smaller than asked for. In a process made by fork()
// it runs alone in the caller, because an OpenMP team of the parent does not survive there.
void parallel(int threads, void (*body)(void* argument, int thread, int threads), void* argument);

// Waits for the whole team; only inside parallel(), and by all of it.
void barrier();

// At least `floats` floats, 64-byte aligned, contents undefined, valid until the next scratch() of this thread;
// NULL when there is no memory.
float* scratch(size_t floats);
void release_scratch();

}  // namespace gossamer
