#include "base/parallel.h"

#include <stdlib.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define GOSSAMER_HAS_FORK 1
#endif

namespace gossamer {
namespace {

bool forked = false;

#if defined(GOSSAMER_HAS_FORK)
void note_fork() { forked = true; }
const int fork_watch = pthread_atfork(nullptr, nullptr, note_fork);
#endif

struct Scratch {
    void* block = nullptr;
    size_t bytes = 0;
    ~Scratch() { free(block); }
};
thread_local Scratch mine;

}  // namespace

int usable_threads(int threads) {
    int most = 64;  // tests run more threads than processors; OpenMP ends the process where it cannot make as many as asked for
#if defined(_OPENMP)
    if (omp_get_num_procs() > most) most = omp_get_num_procs();
#endif
    return threads < 1 ? 1 : threads < most ? threads : most;
}

void parallel(int threads, void (*body)(void*, int, int), void* argument) {
#if defined(_OPENMP)
    if (threads > 1 && !forked) {
#pragma omp parallel num_threads(threads)
        body(argument, omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    (void)threads;
    body(argument, 0, 1);
}

void barrier() {
#if defined(_OPENMP)
    if (omp_get_num_threads() > 1) {
#pragma omp barrier
    }
#endif
}

float* scratch(size_t floats) {
    if (floats > PTRDIFF_MAX / sizeof(float) - 4096) return nullptr;
    const size_t bytes = (floats * sizeof(float) + 4095) / 4096 * 4096;
    if (bytes > mine.bytes) {
        free(mine.block);
        mine.bytes = 0;
        constexpr size_t huge = 2 << 20;  // scratch is read in jumps from plane to plane: large pages spare address look-ups
        mine.block = aligned_alloc(bytes < huge ? 4096 : huge, bytes < huge ? bytes : (bytes + huge - 1) / huge * huge);
        if (mine.block) mine.bytes = bytes;
#if defined(__linux__)
        if (mine.block && bytes >= huge) madvise(mine.block, bytes, MADV_HUGEPAGE);
#endif
    }
    return static_cast<float*>(mine.block);
}

void release_scratch() {
    free(mine.block);
    mine.block = nullptr;
    mine.bytes = 0;
}

}  // namespace gossamer
