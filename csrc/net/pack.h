// A program made ready for running: where everything lies, how each operation runs, weights packed for the kernels.
#pragma once

#include <memory>

#include "net/program.h"

namespace gossamer::net {

// Memory for std::free, aligned to 64 bytes; in large pages where it is much, since planes are read in jumps from page to page.
void* aligned_memory(size_t bytes);

// Memory that lives as long as the net, aligned to 64 bytes, counted against the caller's limit before it is taken.
class Store {
  public:
    explicit Store(size_t limit) : limit_(limit) {}
    template <typename T>
    T* take(int64_t count) {
        return static_cast<T*>(bytes(count, sizeof(T)));
    }
    void reserve(int64_t count, size_t size);  // counts without taking
    size_t used() const { return used_; }

  private:
    struct Free {
        void operator()(void* block) const;
    };
    void* bytes(int64_t count, size_t size);
    size_t limit_, used_ = 0;
    std::vector<std::unique_ptr<void, Free>> blocks_;
};

struct Described {
    std::string kernel;
    int64_t madds = 0, bytes = 0;
};

struct Packed {
    explicit Packed(size_t limit) : store(limit) {}
    Program program;
    Store store;
    std::vector<std::unique_ptr<View[]>> views;  // the inputs of each operation
    std::vector<Described> described;
    int64_t shared = 0, own = 0;  // floats of scratch: of a team, of each thread
    int64_t weights = 0;          // bytes of weights and indices as packed
};

constexpr int64_t kSlackFloats = 256;  // may be read, never used, after the last float of a plane

std::unique_ptr<Packed> pack(Program program, size_t memory_limit);

}  // namespace gossamer::net
