// The C functions of gossamer_net.h: nets, their states, and the loop over the operations.
#include "net/gossamer_net.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>

#include "net/pack.h"
#include "base/parallel.h"

using namespace gossamer;
using namespace gossamer::net;

struct gossamer_net {
    std::unique_ptr<Packed> packed;
};

struct gossamer_net_state {
    const Packed* packed;
    int threads;
    float* memory;  // arena, scratch of the team, scratch of each thread
    float *arena, *shared, *own;
    ~gossamer_net_state() { std::free(memory); }
};

namespace {

constexpr size_t kLimit = size_t(4) << 30;
constexpr int kThreads = 1024;

int failed(char* error, size_t size, const std::string& sentence) {
    if (error && size) {
        const size_t kept = std::min(size - 1, sentence.size());
        std::memcpy(error, sentence.data(), kept);
        error[kept] = 0;
    }
    return GOSSAMER_NET_FAILED;
}

template <typename Body>
int guarded(char* error, size_t size, Body body) {
    try {
        body();
        return GOSSAMER_OK;
    } catch (const std::bad_alloc&) {
        return failed(error, size, "there is not enough memory for the program");
    } catch (const std::exception& fault) {
        return failed(error, size, fault.what());
    }
}

void check_isa() {
    if (!net_kernels()) throw Refused(gossamer_status_text(GOSSAMER_UNKNOWN_ISA));
}

// Rows of a value against the caller's array, in row-major order.
template <typename Move>
void each_row_of(const View& view, const Worker& w, Move move) {
    const int64_t rows = view.channels * view.height;
    for (int64_t r = rows * w.thread / w.threads; r < rows * (w.thread + 1) / w.threads; r++)
        move(r, r / view.height * view.plane + r % view.height * view.pitch);
}

void read_input(const View& view, const Worker& w, const float* from) {
    float* const to = w.arena + view.offset;
    if (w.thread == 0) std::fill(to - view.head, to, 0.0f);
    each_row_of(view, w, [&](int64_t r, int64_t at) {
        std::memcpy(to + at, from + r * view.width, view.width * sizeof(float));
        const bool last = (r + 1) % view.height == 0;
        const int64_t end = last ? (r / view.height + 1) * view.plane : at + view.pitch;
        if (end > at + view.width) std::fill(to + at + view.width, to + end, 0.0f);
    });
}

void write_output(const View& view, const Worker& w, float* to) {
    const float* const from = view.constant ? view.constant : w.arena + view.offset;
    each_row_of(view, w, [&](int64_t r, int64_t at) { std::memcpy(to + r * view.width, from + at, view.width * sizeof(float)); });
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Run {
    const gossamer_net_state* state;
    int64_t batch;
    const float* const* inputs;
    float* const* outputs;
    double* seconds;
};

void run_team(void* argument, int thread, int threads) {
    const Run& run = *static_cast<const Run*>(argument);
    const gossamer_net_state& state = *run.state;
    const Program& program = state.packed->program;
    const Worker worker = {state.arena, state.shared, state.own + thread * state.packed->own, thread, threads};
    const auto together = [&] {
        if (threads > 1) barrier();
    };
    void (*const step)(const Step&, const Worker&) = net_kernels()->run;
    for (int64_t n = 0; n < run.batch; n++) {
        for (size_t i = 0; i < program.inputs.size(); i++) {
            const Value& value = program.values[program.inputs[i].value];
            read_input(value.view, worker, run.inputs[i] + n * value.elements());
        }
        together();
        for (size_t i = 0; i < program.operations.size(); i++) {
            const double start = run.seconds && thread == 0 ? now() : 0;
            step(program.operations[i].step, worker);
            together();
            if (run.seconds && thread == 0) run.seconds[i] += now() - start;
        }
        for (size_t i = 0; i < program.outputs.size(); i++) {
            const Value& value = program.values[program.outputs[i].value];
            write_output(value.view, worker, run.outputs[i] + n * value.elements());
        }
        together();
    }
}

int run(gossamer_net_state* state, int64_t batch, const float* const* inputs, float* const* outputs, double* seconds, char* error, size_t size) {
    if (!state || !inputs || !outputs) return failed(error, size, "a null pointer was given where a state or arrays belong");
    const Program& program = state->packed->program;
    if (batch < 1 || batch > program.batch)
        return failed(error, size, "a batch of " + std::to_string(batch) + " was given; the program takes 1 to " + std::to_string(program.batch));
    for (size_t i = 0; i < program.inputs.size(); i++)
        if (!inputs[i]) return failed(error, size, "an input is a null pointer");
    for (size_t i = 0; i < program.outputs.size(); i++)
        if (!outputs[i]) return failed(error, size, "an output is a null pointer");
    Run job = {state, batch, inputs, outputs, seconds};
    parallel(state->threads, run_team, &job);
    return GOSSAMER_OK;
}

gossamer_net_port port(const Program& program, const std::vector<Port>& ports, int index) {
    gossamer_net_port made = {};
    if (index < 0 || (size_t)index >= ports.size()) return made;
    const Port& one = ports[index];
    made.name = one.name.c_str();
    made.rank = (int)one.shape.size();
    std::copy(one.shape.begin(), one.shape.end(), made.shape);
    made.floats = program.values[one.value].elements();
    return made;
}

}  // namespace

extern "C" {

int gossamer_net_load(const void* bytes, size_t size, size_t memory_limit, gossamer_net** net, char* error, size_t error_size) {
    if (!net || (!bytes && size)) return failed(error, error_size, "a null pointer was given where the file's bytes or the net belong");
    *net = nullptr;
    const size_t limit = memory_limit ? memory_limit : kLimit;
    return guarded(error, error_size, [&] {
        check_isa();
        auto made = std::make_unique<gossamer_net>();
        made->packed = pack(read_program({static_cast<const char*>(bytes), size}, limit), limit);
        *net = made.release();
    });
}

int gossamer_net_load_file(const char* path, size_t memory_limit, gossamer_net** net, char* error, size_t error_size) {
    if (!path || !net) return failed(error, error_size, "a null pointer was given where a path or the net belongs");
    *net = nullptr;
    std::string bytes;
    const int status = guarded(error, error_size, [&] {
        std::ifstream file(path, std::ios::binary | std::ios::ate);
        const std::streamoff size = file ? (std::streamoff)file.tellg() : -1;
        if (size < 0) throw Refused(std::string("the file ") + path + " cannot be read");
        if ((uint64_t)size > (memory_limit ? memory_limit : kLimit)) throw Refused(std::string("the file ") + path + " is larger than the memory limit");
        bytes.resize((size_t)size);
        file.seekg(0);
        if (!file.read(&bytes[0], size)) throw Refused(std::string("the file ") + path + " cannot be read");
    });
    return status ? status : gossamer_net_load(bytes.data(), bytes.size(), memory_limit, net, error, error_size);
}

void gossamer_net_free(gossamer_net* net) { delete net; }

int gossamer_net_batch(const gossamer_net* net) { return net ? net->packed->program.batch : 0; }
int gossamer_net_inputs(const gossamer_net* net) { return net ? (int)net->packed->program.inputs.size() : 0; }
int gossamer_net_outputs(const gossamer_net* net) { return net ? (int)net->packed->program.outputs.size() : 0; }
int gossamer_net_operations(const gossamer_net* net) { return net ? (int)net->packed->program.operations.size() : 0; }

gossamer_net_port gossamer_net_input(const gossamer_net* net, int index) {
    return net ? port(net->packed->program, net->packed->program.inputs, index) : gossamer_net_port{};
}
gossamer_net_port gossamer_net_output(const gossamer_net* net, int index) {
    return net ? port(net->packed->program, net->packed->program.outputs, index) : gossamer_net_port{};
}

gossamer_net_operation gossamer_net_describe(const gossamer_net* net, int index) {
    if (index < 0 || index >= gossamer_net_operations(net)) return {};
    const Operation& op = net->packed->program.operations[index];
    const Described& described = net->packed->described[index];
    return {op.kind.c_str(), op.name.c_str(), described.kernel.c_str(), described.madds, described.bytes};
}

int64_t gossamer_net_activation_bytes(const gossamer_net* net) { return net ? 4 * net->packed->program.arena : 0; }
int64_t gossamer_net_weight_bytes(const gossamer_net* net) { return net ? net->packed->weights : 0; }
int64_t gossamer_net_scratch_bytes(const gossamer_net* net) { return net ? 4 * (net->packed->shared + net->packed->own) : 0; }

int gossamer_net_state_new(const gossamer_net* net, int threads, gossamer_net_state** state, char* error, size_t error_size) {
    if (!net || !state) return failed(error, error_size, "a null pointer was given where a net or a state belongs");
    *state = nullptr;
    if (threads < 1 || threads > kThreads)
        return failed(error, error_size, std::to_string(threads) + " threads were asked for; it can be 1 to " + std::to_string(kThreads));
    return guarded(error, error_size, [&] {
        const Packed& packed = *net->packed;
        const int64_t arena = (packed.program.arena + 2 * kSlackFloats + 15) / 16 * 16, shared = (packed.shared + 15) / 16 * 16;
        auto made = std::make_unique<gossamer_net_state>();
        made->packed = &packed;
        made->threads = threads;
        const size_t floats = (size_t)(arena + shared + threads * packed.own);
        made->memory = static_cast<float*>(aligned_memory(floats * sizeof(float)));
        std::memset(made->memory, 0, floats * sizeof(float));  // nothing of another's memory is ever read
        made->arena = made->memory + kSlackFloats;
        made->shared = made->memory + arena;
        made->own = made->shared + shared;
        *state = made.release();
    });
}

void gossamer_net_state_free(gossamer_net_state* state) { delete state; }

int gossamer_net_run(gossamer_net_state* state, int64_t batch, const float* const* inputs, float* const* outputs, char* error, size_t error_size) {
    return run(state, batch, inputs, outputs, nullptr, error, error_size);
}

int gossamer_net_profile(gossamer_net_state* state, int64_t batch, const float* const* inputs, float* const* outputs, double* seconds,
                         char* error, size_t error_size) {
    return run(state, batch, inputs, outputs, seconds, error, error_size);
}

}  // extern "C"
