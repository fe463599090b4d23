// Scratch memory as a row of pieces. Without memory an arena only counts, so what lays out pieces also says how much they take.
#pragma once

#include "base/arith.h"
#include "base/parallel.h"

namespace gossamer {
namespace {

struct Arena {
    float* memory;  // NULL: pieces are counted and not given out
    i64 used, peak; // floats; who sets `used` back uses memory again

    // Room for `count` values on a cache line of its own.
    template <class T>
    T* take(i64 count) {
        float* const piece = memory ? memory + used : nullptr;
        used += round_up(divide_up(count * (i64)sizeof(T), sizeof(float)), 16);
        peak = most(peak, used);
        return reinterpret_cast<T*>(piece);
    }
};

// Lays out the pieces that lay_out(Arena*) takes: counted first, then in scratch memory. An arena without memory where there is none.
template <class LayOut>
Arena in_scratch(const LayOut& lay_out) {
    Arena arena = {nullptr, 0, 0};
    lay_out(&arena);
    arena = {scratch(arena.peak), 0, 0};
    if (arena.memory) lay_out(&arena);
    return arena;
}

}  // namespace
}  // namespace gossamer
