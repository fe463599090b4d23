// Decides how each operation runs and packs what it reads.
#include "net/pack.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gossamer::net {
namespace {

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

constexpr int64_t kIndicesAhead = 16;  // kernels fetch planes of coming connections, also after the last

constexpr int kLinesKernel = 5;  // windows whose every element is worth a load

class Packer {
  public:
    Packer(Packed& made) : made_(made), program_(made.program), tensors_(made.program.tensors.size()) {}

    void run() {
        for (Value& value : program_.values)
            if (value.type == Value::Constant) value.view.constant = floats(value.tensor);
        for (Operation& op : program_.operations) {
            where_ = op.kind + " '" + op.name.substr(0, 120) + "'";
            pack(op);
        }
        made_.weights = (int64_t)made_.store.used();
        made_.own += kSlackFloats;
        made_.store.reserve(program_.arena + 2 * kSlackFloats + made_.shared + made_.own, 4);
    }

  private:
    const float* floats(int tensor) {
        if (!tensors_[tensor]) {
            const Tensor& from = program_.tensors[tensor];
            float* to = made_.store.take<float>(from.count + kSlackFloats);
            if (from.count) std::memcpy(to, from.bytes, from.count * 4);
            std::fill(to + from.count, to + from.count + kSlackFloats, 0.0f);
            tensors_[tensor] = to;
        }
        return tensors_[tensor];
    }
    const float* floats(const Operation& op, const char* role) {
        const auto found = op.tensors.find(role);
        return found == op.tensors.end() ? nullptr : floats(found->second);
    }
    const int32_t* integers(const Operation& op, const char* role) {
        const auto found = op.tensors.find(role);
        if (found == op.tensors.end()) return nullptr;
        const Tensor& from = program_.tensors[found->second];
        int32_t* to = made_.store.take<int32_t>(from.count + kIndicesAhead);
        if (from.count) std::memcpy(to, from.bytes, from.count * 4);
        std::fill(to + from.count, to + from.count + kIndicesAhead, 0);
        return to;
    }

    void pack(Operation& op) {
        auto views = std::make_unique<View[]>(op.inputs.size());
        Step& s = op.step;
        Described described;
        int64_t width = s.out.width;
        for (size_t i = 0; i < op.inputs.size(); i++) {
            const Value& value = program_.values[op.inputs[i]];
            views[i] = value.view;
            width = std::max(width, value.view.width);
            described.bytes += 4 * value.elements();
        }
        described.bytes += 4 * program_.values[op.output].elements();
        for (const auto& role : op.tensors) described.bytes += 4 * program_.tensors[role.second].count;
        s.in = views.get();
        s.inputs = (int32_t)op.inputs.size();
        made_.own = std::max(made_.own, 4 * (width + 64));
        const View& source = views[0];
        switch (s.kind) {
            case Kind::Conv:
                if (of_vectors(op)) {
                    s.kind = Kind::Linear;
                    linear(op, source.channels, described);
                } else {
                    conv(op, described);
                }
                break;
            case Kind::Linear: linear(op, program_.tensors[op.tensors.at("weight")].shape[1], described); break;
            case Kind::Pool: pool(op, source, described); break;
            case Kind::Copy: copy(s, source, described); break;
            case Kind::Matmul:
                described.madds = s.out.channels * s.out.height * s.out.width * (s.transpose_a ? source.height : source.width);
                break;
            default: break;
        }
        s.scale = floats(op, "scale");
        s.shift = floats(op, "shift");
        if (s.kind == Kind::Select || s.kind == Kind::Resample) {
            s.channel_index = integers(op, "channels");
            s.row_index = integers(op, "rows"), s.column_index = integers(op, "columns");
            s.row_weight = floats(op, "row_weights"), s.column_weight = floats(op, "column_weights");
        }
        made_.views.push_back(std::move(views));
        made_.described.push_back(std::move(described));
    }

    // What sums are divided by is the product of a part for the columns of a window and one for its rows.
    static std::vector<float> extents(int64_t out, int64_t stride, int64_t kernel, int64_t size, int64_t before, int64_t after, const Step& s) {
        std::vector<float> made(out, 1.0f);
        for (int64_t i = 0; i < out && !s.divisor; i++) {
            const int64_t from = i * stride - before, to = std::min(from + kernel, size + (s.count_padding ? after : 0));
            made[i] = (float)(to - (s.count_padding ? from : std::max<int64_t>(from, 0)));
        }
        return made;
    }

    void pool(Operation& op, const View& source, Described& described) {
        Step& s = op.step;
        const int64_t row = product(s.out.width, s.stride_w, where_) + product(s.kernel_w, s.dilation_w, where_);
        made_.own = std::max(made_.own, std::max(row, source.width + s.left) + kSlackFloats);
        described.kernel = "rows";
        if (s.function == Function::Max) return;
        const auto columns = extents(s.out.width, s.stride_w, s.kernel_w, source.width, s.left, s.right, s);
        const auto rows = extents(s.out.height, s.stride_h, s.kernel_h, source.height, s.top, s.bottom, s);
        float* areas = made_.store.take<float>(s.out.width + kSlackFloats);
        std::fill(std::copy(columns.begin(), columns.end(), areas), areas + s.out.width + kSlackFloats, 1.0f);
        s.columns = areas;
        const bool simple = s.activation.function == Function::None || s.activation.function == Function::Clamp;
        const int64_t lanes = round_up((s.out.height - 1) * source.pitch + s.out.width, 16);
        if (s.stride_h != 1 || s.stride_w != 1 || source.pitch != s.out.pitch || !bordered(op, source) || !simple || s.out.plane < lanes ||
            s.kernel_h > kLinesKernel || s.kernel_w > kLinesKernel)
            return;
        Convolution& c = s.conv;
        lay_direct(s, source);
        c.positions = lanes;
        c.inside = inside(s, lanes);
        float* factors = made_.store.take<float>(lanes);
        for (int64_t q = 0; q < lanes; q++)
            factors[q] = c.inside[q] ? 1 / (s.divisor ? (float)s.divisor : rows[q / c.pitch] * columns[q % c.pitch]) : 0;
        s.columns = factors;
        c.lines = true;
        described.kernel = "lines";
    }

    // One word for each position: all bits where it is an element of the output.
    const uint32_t* inside(const Step& s, int64_t lanes) {
        uint32_t* made = made_.store.take<uint32_t>(lanes);
        for (int64_t q = 0; q < lanes; q++)
            made[q] = q / s.conv.pitch < s.out.height && q % s.conv.pitch < s.out.width ? ~0u : 0u;
        return made;
    }

    void linear(Operation& op, int64_t features, Described& described) {
        Step& s = op.step;
        s.weight = floats(op, "weight"), s.bias = floats(op, "bias");
        made_.shared = std::max(made_.shared, features + kSlackFloats);
        described.madds = program_.tensors[op.tensors.at("weight")].count * (s.rows ? s.in[0].channels * s.in[0].height : 1);
        described.kernel = s.rows ? "rows" : "vector";
    }

    // A dense 1x1 convolution of single pixels is a linear layer.
    static bool of_vectors(const Operation& op) {
        const Step& s = op.step;
        return !op.sparse && s.groups == 1 && s.kernel_h == 1 && s.kernel_w == 1 && s.out.height == 1 && s.out.width == 1 &&
               s.in[0].height == 1 && s.in[0].width == 1;
    }

    // Where the source's memory holds each row of the output, if each has one step; else each element.
    void copy(Step& s, const View& source, Described& described) {
        const int64_t rows = s.out.channels * s.out.height, width = s.out.width;
        int32_t *from = made_.store.take<int32_t>(rows), *step = made_.store.take<int32_t>(rows);
        bool even = true;
        for_each(s, source, [&](int64_t i, int64_t at) {
            const int64_t row = i / width, x = i % width;
            if (x == 0) from[row] = (int32_t)at, step[row] = 0;
            if (x == 1) step[row] = (int32_t)(at - from[row]);
            even &= x < 2 || at == from[row] + x * step[row];
        });
        s.from = from, s.step = step;
        described.kernel = "rows";
        if (even) return;
        int32_t* each = made_.store.take<int32_t>(rows * width);
        for_each(s, source, [&](int64_t i, int64_t at) { each[i] = (int32_t)at; });
        s.from = each, s.step = nullptr;
        described.kernel = "elements";
    }

    template <typename Body>
    static void for_each(const Step& s, const View& source, Body body) {
        const int64_t all = s.out.channels * s.out.height * s.out.width;
        int64_t at[8] = {}, logical = s.start;
        for (int64_t i = 0; i < all; i++) {
            const int64_t x = logical % source.width, line = logical / source.width;
            body(i, line / source.height * source.plane + line % source.height * source.pitch + x);
            for (int d = s.dims - 1; d >= 0; d--) {
                logical += s.strides[d];
                if (++at[d] < s.sizes[d]) break;
                logical -= s.strides[d] * s.sizes[d];
                at[d] = 0;
            }
        }
    }

    // --- convolution

    void conv(Operation& op, Described& described) {
        Step& s = op.step;
        Convolution& c = s.conv;
        const View& source = s.in[0];
        c.taps = s.kernel_h * s.kernel_w;
        std::vector<int64_t> from;
        const int64_t connections = blocks(op, from);
        described.madds = connections * c.taps * s.out.height * s.out.width;
        weights(op, from);
        const bool direct = s.stride_h == 1 && s.stride_w == 1 && bordered(op, source);
        direct ? lay_direct(s, source) : lay_phases(s, source);
        c.positions = (s.out.height - 1) * c.pitch + s.out.width;
        const bool residual_lines = s.inputs < 2 || s.in[1].pitch == c.pitch;
        c.lines = c.pitch == s.out.pitch && s.out.plane != 1 && residual_lines && !s.after && s.out.plane >= round_up(c.positions, 16) &&
                  (s.activation.function == Function::None || s.activation.function == Function::Clamp);
        const int64_t lanes = round_up(c.positions, 16);
        if (c.lines) c.inside = inside(s, lanes);
        c.outputs_outside = connections <= 2 * s.out.channels && connections <= 2 * source.channels * c.block[0].width;
        described.kernel = std::string(direct ? "in place" : c.phases > 1 ? "phases" : "padded copy") + ", block " +
                           std::to_string(c.block[0].width) + (c.lines ? "" : ", rows");
    }

    // The blocks and their inputs, and where the file has each output's weights; returns the number of connections.
    int64_t blocks(Operation& op, std::vector<int64_t>& from) {
        Step& s = op.step;
        Convolution& c = s.conv;
        std::vector<Block> made;
        int64_t weight = 0, connections = 0;
        const auto add = [&](const std::vector<int32_t>& outputs, int64_t inputs, int64_t index) {  // as many fours as there are, a two, a one
            for (size_t o = 0; o < outputs.size();) {
                const size_t left = outputs.size() - o;
                Block block = {{}, left >= 4 ? 4 : left >= 2 ? 2 : 1, (int32_t)inputs, index, weight};
                std::copy_n(outputs.begin() + o, block.width, block.output);
                made.push_back(block);
                weight += block.width * inputs * c.taps;
                connections += block.width * inputs;
                o += block.width;
            }
        };
        from.resize(s.out.channels);
        if (op.sparse) {
            const Tensor& indptr = program_.tensors[op.tensors.at("indptr")];
            c.indices = integers(op, "indices");
            std::map<std::vector<int32_t>, std::vector<int32_t>> listeners;  // of the same inputs, whether or not the file calls them a block
            for (int32_t o = 0; o < s.out.channels; o++) {
                const int64_t row = o / op.block, first = indptr.whole(row), inputs = indptr.whole(row + 1) - first;
                from[o] = (op.block * first + o % op.block * inputs) * c.taps;
                listeners[std::vector<int32_t>(c.indices + first, c.indices + first + inputs)].push_back(o);
            }
            for (const auto& [inputs, outputs] : listeners) add(outputs, (int64_t)inputs.size(), indptr.whole(outputs[0] / op.block));
            std::sort(made.begin(), made.end(), [](const Block& a, const Block& b) { return a.output[0] < b.output[0]; });
        } else {
            const int64_t inputs = s.in[0].channels / s.groups, outputs = s.out.channels / s.groups;
            int32_t* all = made_.store.take<int32_t>(s.in[0].channels + kIndicesAhead);
            for (int64_t i = 0; i < s.in[0].channels + kIndicesAhead; i++) all[i] = (int32_t)(i % s.in[0].channels);
            c.indices = all;
            std::vector<int32_t> group(outputs);
            for (int64_t g = 0; g < s.groups; g++) {
                for (int64_t o = 0; o < outputs; o++) group[o] = (int32_t)(g * outputs + o), from[group[o]] = group[o] * inputs * c.taps;
                add(group, inputs, g * inputs);
            }
        }
        c.blocks = (int32_t)made.size();
        Block* kept = made_.store.take<Block>(c.blocks);
        std::copy(made.begin(), made.end(), kept);
        c.block = kept;
        return connections;
    }

    // From [output][input][tap] to [block][input][tap][output of the block].
    void weights(Operation& op, const std::vector<int64_t>& from) {
        const Step& s = op.step;
        Convolution& c = op.step.conv;
        const Tensor& held = program_.tensors[op.tensors.at("weight")];
        float* to = made_.store.take<float>(held.count + 16);
        for (int32_t i = 0; i < c.blocks; i++) {
            const Block& b = c.block[i];
            for (int64_t o = 0; o < b.width; o++)
                for (int64_t k = 0; k < (int64_t)b.inputs * c.taps; k++)
                    std::memcpy(to + b.weight + k * b.width + o, held.bytes + 4 * (from[b.output[o]] + k), 4);
        }
        c.weight = to;
        float* bias = made_.store.take<float>(s.out.channels);
        const auto found = op.tensors.find("bias");
        for (int64_t o = 0; o < s.out.channels; o++) bias[o] = found == op.tensors.end() ? 0 : program_.tensors[found->second].real(o);
        c.bias = bias;
    }

    // Whether every tap outside the source reads a zero of its border.
    bool bordered(const Operation& op, const View& v) const {
        const Step& s = op.step;
        if (!s.top && !s.left && !s.bottom && !s.right) return true;
        const int64_t gap = v.pitch - v.width, below = v.plane - v.height * v.pitch, before = s.top * v.pitch + s.left;
        if (v.constant || op.open_front || gap < std::max(s.left, s.right) || below < std::max(s.top, s.bottom) * v.pitch) return false;
        return program_.values[op.inputs[0]].channel > 0 || v.head >= before;
    }

    // Runs of taps that follow each other: offset(row, column) of a tap.
    template <typename Offset>
    void runs(Step& s, Offset offset) {
        Convolution& c = s.conv;
        std::vector<int64_t> taps;
        for (int64_t y = 0; y < s.kernel_h; y++)
            for (int64_t x = 0; x < s.kernel_w; x++) taps.push_back(offset(y, x));
        c.across = s.kernel_w == 3 || s.kernel_w == 5 || s.kernel_w == 7 ? s.kernel_w : 1;
        for (size_t t = 1; t < taps.size(); t++)
            if (t % c.across && taps[t] != taps[t - 1] + 1) c.across = 1;
        c.taps = s.kernel_h * s.kernel_w;
        c.runs = c.taps / c.across;
        int64_t* run = made_.store.take<int64_t>(c.runs);
        for (int64_t r = 0; r < c.runs; r++) run[r] = taps[r * c.across];
        c.run = run;
    }

    void lay_direct(Step& s, const View& source) {
        Convolution& c = s.conv;
        c.pitch = source.pitch;
        c.plane = source.plane;
        c.start = -(s.top * source.pitch + s.left);
        runs(s, [&](int64_t y, int64_t x) { return y * s.dilation_h * source.pitch + x * s.dilation_w; });
    }

    void lay_phases(Step& s, const View& source) {
        Convolution& c = s.conv;
        struct Axis {
            std::vector<int64_t> phase, step;  // of each tap
            int64_t first, span;
        };
        const auto axis = [](int64_t kernel, int64_t stride, int64_t dilation, int64_t before) {
            Axis a;
            for (int64_t t = 0; t < kernel; t++) {
                const int64_t at = t * dilation - before;
                a.step.push_back(floor_divide(at, stride));
                a.phase.push_back(at - a.step.back() * stride);
            }
            a.first = a.step.front();  // steps ascend with the taps
            a.span = a.step.back() - a.first;
            return a;
        };
        const Axis rows = axis(s.kernel_h, s.stride_h, s.dilation_h, s.top), columns = axis(s.kernel_w, s.stride_w, s.dilation_w, s.left);
        std::map<std::pair<int64_t, int64_t>, int64_t> phases;
        for (int64_t a : rows.phase)
            for (int64_t b : columns.phase) phases[{a, b}] = 0;
        int64_t count = 0;
        for (auto& entry : phases) entry.second = count++;
        c.prepared = true;
        c.phases = (int32_t)phases.size();
        int32_t* phase = made_.store.take<int32_t>(2 * c.phases);
        for (const auto& [at, i] : phases) phase[2 * i] = (int32_t)at.first, phase[2 * i + 1] = (int32_t)at.second;
        c.phase = phase;
        c.first_row = rows.first, c.first_column = columns.first;
        c.phase_rows = s.out.height + rows.span;
        c.pitch = s.out.width + columns.span;
        if (s.out.plane != 1 && s.out.pitch > c.pitch && s.out.pitch <= c.pitch + 8) c.pitch = s.out.pitch;
        c.phase_plane = product(c.phase_rows, c.pitch, where_);
        c.plane = round_up(product(c.phase_plane, c.phases, where_), 16);
        if (c.plane % 1024 == 0) c.plane += 16;  // planes that far apart share few sets of the caches
        made_.shared = std::max(made_.shared, product(c.plane, source.channels, where_) + kSlackFloats);
        c.start = 0;
        runs(s, [&](int64_t y, int64_t x) {
            return phases.at({rows.phase[y], columns.phase[x]}) * c.phase_plane + (rows.step[y] - rows.first) * c.pitch + columns.step[x] - columns.first;
        });
    }

    Packed& made_;
    Program& program_;
    std::vector<const float*> tensors_;
    std::string where_;
};

}  // namespace

void* aligned_memory(size_t bytes) {
    constexpr size_t huge = 2 << 20;
    const size_t unit = bytes < huge ? 64 : huge;
    void* block = std::aligned_alloc(unit, (bytes + unit) / unit * unit);
    if (!block) throw std::bad_alloc();
#if defined(__linux__)
    if (bytes >= huge) madvise(block, bytes, MADV_HUGEPAGE);
#endif
    return block;
}

void Store::Free::operator()(void* block) const { std::free(block); }

void Store::reserve(int64_t count, size_t size) {
    const int64_t wanted = product(count, (int64_t)size, "the program");
    if ((size_t)wanted > limit_ || used_ > limit_ - (size_t)wanted)
        throw Refused("the program needs more memory than the limit of " + std::to_string(limit_) + " bytes");
    used_ += (size_t)wanted;
}

void* Store::bytes(int64_t count, size_t size) {
    reserve(count, size);
    void* block = aligned_memory((size_t)(count * (int64_t)size));
    blocks_.emplace_back(block);
    return block;
}

std::unique_ptr<Packed> pack(Program program, size_t memory_limit) {
    auto made = std::make_unique<Packed>(memory_limit);
    made->program = std::move(program);
    Packer(*made).run();
    for (Operation& op : made->program.operations) op.tensors.clear();
    made->program.tensors.clear();  // their bytes are the caller's
    return made;
}

}  // namespace gossamer::net
