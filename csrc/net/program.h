// A program as its file says it, read and checked (file.cpp): plain data with owned memory, nothing of how it runs.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "net/json.h"
#include "net/step.h"

namespace gossamer::net {

// A tensor of the file; the bytes are the caller's.
struct Tensor {
    std::string name;
    bool floats = true;  // else int32
    std::vector<int64_t> shape;
    int64_t count = 0;
    const unsigned char* bytes = nullptr;

    float real(int64_t i) const;
    int32_t whole(int64_t i) const;
};

struct Value {
    enum Type { Arena, Slice, Constant } type = Arena;
    View view;          // a slice's too: its own place; `constant` is set when the tensors have been copied
    int base = -1;      // of a slice
    int64_t channel = 0;
    int tensor = -1;
    bool has_slices = false;
    int64_t elements() const { return view.channels * view.height * view.width; }
};

struct Operation {
    std::string name, kind;
    Step step = {};              // sizes and attributes; pointers are set when the program is packed (pack.cpp)
    std::vector<int> inputs;
    int output = -1;
    std::map<std::string, int> tensors;
    int block = 1;       // conv: consecutive outputs that share inputs
    bool sparse = false;
    bool residual = false;
    bool open_front = false;  // conv: the channel before its source is not written yet, so that the border there is not zero
};

struct Port {
    std::string name;
    int value = -1;
    std::vector<int64_t> shape;
};

struct Program {
    int batch = 0;
    int64_t arena = 0;
    std::vector<Tensor> tensors;
    std::vector<Value> values;
    std::vector<Operation> operations;
    std::vector<Port> inputs, outputs;
};

// Both at least 0; throws Refused where the product is beyond every size a file may have.
int64_t product(int64_t a, int64_t b, const std::string& where);

// Reads and checks everything docs/program.md lists; throws Refused. The tensors still lie in `bytes`.
Program read_program(std::string_view bytes, size_t memory_limit);

}  // namespace gossamer::net
