// Reads a program's file (docs/program.md) and checks all of it, so that running it checks nothing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "net/program.h"

namespace gossamer::net {
namespace {

constexpr int64_t kHeader = 64ll << 20;
constexpr int64_t kArena = 1ll << 30;
constexpr int64_t kSize = 1ll << 28;
constexpr int64_t kTaps = 1 << 16;
constexpr int64_t kProduct = 1ll << 40;

std::string quoted(const std::string& text) {
    std::string made = "'";
    for (char c : text.substr(0, 80)) made += (unsigned char)c < 0x20 ? '?' : c;
    return made + "'";
}
std::string number(int64_t n) { return std::to_string(n); }

// One JSON object whose every member must be asked for: what nobody read is an error.
class Fields {
  public:
    Fields(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
        if (json.type != Json::Object) throw Refused(where_ + " is not an object");
    }

    [[noreturn]] void fail(const std::string& how) const { throw Refused(where_ + " " + how); }
    bool has(const char* key) const { return json_.find(key) != nullptr; }

    const Json& get(const char* key) {
        const Json* found = json_.find(key);
        if (!found) fail("lacks " + quoted(key));
        seen_.insert(key);
        return *found;
    }
    const Json& get(const char* key, Json::Type type, const char* kind) {
        const Json& value = get(key);
        if (value.type != type) fail("has a " + quoted(key) + " that is not " + kind);
        return value;
    }
    int64_t whole(const Json& value, const char* key, int64_t lowest, int64_t highest) const {
        if (value.type != Json::Number || !value.whole) fail("has a " + quoted(key) + " that is no integer");
        if (value.integer < lowest || value.integer > highest)
            fail("has " + quoted(key) + " = " + number(value.integer) + ", outside " + number(lowest) + " to " + number(highest));
        return value.integer;
    }
    int64_t whole(const char* key, int64_t lowest, int64_t highest) { return whole(get(key), key, lowest, highest); }
    int64_t whole_or(const char* key, int64_t otherwise, int64_t lowest, int64_t highest) {
        return has(key) ? whole(key, lowest, highest) : otherwise;
    }
    std::vector<int64_t> list(const char* key, size_t least, size_t most, int64_t lowest, int64_t highest) {
        const Json& value = get(key, Json::Array, "a list");
        if (value.items.size() < least || value.items.size() > most) fail("has a " + quoted(key) + " of the wrong length");
        std::vector<int64_t> made;
        for (const Json& item : value.items) made.push_back(whole(item, key, lowest, highest));
        return made;
    }
    float real(const char* key) {
        const Json& value = get(key, Json::Number, "a number");
        const float made = (float)value.number;
        if (!std::isfinite(made)) fail("has a " + quoted(key) + " out of range");
        return made;
    }
    float real_or(const char* key, float otherwise) { return has(key) ? real(key) : otherwise; }
    bool truth_or(const char* key, bool otherwise) { return has(key) ? get(key, Json::Bool, "true or false").truth : otherwise; }
    const std::string& text(const char* key) { return get(key, Json::String, "a string").text; }

    void finish() const {
        for (const auto& member : json_.members)
            if (!seen_.count(member.first)) fail("has an unknown key " + quoted(member.first));
    }

  private:
    const Json& json_;
    std::string where_;
    std::set<std::string, std::less<>> seen_;
};

// ---------------------------------------------------------------------------------------------------------------------
// The container: safetensors.

uint64_t little_endian(const char* bytes) {
    uint64_t made = 0;
    for (int i = 7; i >= 0; i--) made = made << 8 | (unsigned char)bytes[i];
    return made;
}

// The tensors and the text of the program.
std::string read_container(std::string_view bytes, std::vector<Tensor>& tensors) {
    if (bytes.size() < 8) throw Refused("the file is too short to be a program");
    const uint64_t header = little_endian(bytes.data());
    if (header > (uint64_t)kHeader || header > bytes.size() - 8)
        throw Refused("the file is no program or is cut off: its header would have " + std::to_string(header) + " bytes");
    const Json json = parse_json(bytes.substr(8, header), "the header");
    if (json.type != Json::Object) throw Refused("the header is not an object");
    const std::string_view data = bytes.substr(8 + header);
    std::string program;
    bool found = false;
    std::vector<std::pair<int64_t, int64_t>> extents;
    for (const auto& [name, entry] : json.members) {
        if (name == "__metadata__") {
            if (entry.type != Json::Object) throw Refused("the header's metadata is not an object");
            for (const auto& [key, value] : entry.members) {
                if (value.type != Json::String) throw Refused("the header's metadata has " + quoted(key) + " that is not a string");
                if (key == "gossamer_program") program = value.text, found = true;
            }
            continue;
        }
        Fields fields(entry, "tensor " + quoted(name));
        Tensor tensor;
        tensor.name = name;
        const std::string& type = fields.text("dtype");
        if (type != "F32" && type != "I32") fields.fail("is " + quoted(type) + "; a program's tensors are F32 or I32");
        tensor.floats = type == "F32";
        tensor.shape = fields.list("shape", 0, 8, 0, kProduct);
        tensor.count = 1;
        for (int64_t size : tensor.shape) tensor.count = product(tensor.count, size, "tensor " + quoted(name));
        const std::vector<int64_t> extent = fields.list("data_offsets", 2, 2, 0, INT64_MAX / 2);
        fields.finish();
        if (extent[0] > extent[1] || extent[1] > (int64_t)data.size()) fields.fail("lies outside the file");
        if (extent[1] - extent[0] != tensor.count * 4) fields.fail("has another number of bytes than its shape");
        tensor.bytes = reinterpret_cast<const unsigned char*>(data.data()) + extent[0];
        extents.emplace_back(extent[0], extent[1]);
        tensors.push_back(std::move(tensor));
    }
    std::sort(extents.begin(), extents.end());
    int64_t end = 0;
    for (const auto& [from, to] : extents) {
        if (from != end) throw Refused("the tensors overlap or leave holes in the file");
        end = to;
    }
    if (end != (int64_t)data.size()) throw Refused("the file has bytes that belong to no tensor");
    if (!found) throw Refused("the file has tensors but no program: its metadata lacks 'gossamer_program'");
    return program;
}

// ---------------------------------------------------------------------------------------------------------------------

struct FunctionName {
    const char* name;
    Function function;
};

const FunctionName kActivations[] = {
    {"clamp", Function::Clamp}, {"leaky_relu", Function::LeakyRelu}, {"elu", Function::Elu}, {"sigmoid", Function::Sigmoid},
    {"tanh", Function::Tanh}, {"silu", Function::Silu}, {"gelu", Function::Gelu}, {"gelu_tanh", Function::GeluTanh},
    {"hardsigmoid", Function::HardSigmoid}, {"hardswish", Function::HardSwish}, {"softplus", Function::Softplus},
    {"mish", Function::Mish}, {"exp", Function::Exp}, {"log", Function::Log}, {"sqrt", Function::Sqrt}, {"rsqrt", Function::Rsqrt},
    {"abs", Function::Abs}, {"neg", Function::Neg}, {"square", Function::Square}, {"reciprocal", Function::Reciprocal},
    {"erf", Function::Erf}, {"sin", Function::Sin}, {"cos", Function::Cos}, {"floor", Function::Floor},
    {"softsign", Function::Softsign}, {"logsigmoid", Function::LogSigmoid},
};
const FunctionName kBinary[] = {
    {"add", Function::Add}, {"sub", Function::Sub}, {"mul", Function::Mul}, {"div", Function::Div}, {"maximum", Function::Maximum},
    {"minimum", Function::Minimum}, {"pow", Function::Pow}, {"prelu", Function::Prelu},
};
const FunctionName kPool[] = {{"max", Function::Max}, {"average", Function::Average}};
const FunctionName kReduce[] = {{"mean", Function::Mean}, {"sum", Function::Sum}, {"max", Function::Max}, {"min", Function::Min}};

template <size_t n>
Function function_named(const FunctionName (&names)[n], Fields& fields, const char* key) {
    const std::string& wanted = fields.text(key);
    for (const FunctionName& one : names)
        if (wanted == one.name) return one.function;
    fields.fail("has an unknown " + std::string(key) + " " + quoted(wanted));
}

Activation read_activation(const Json& json, const std::string& where) {
    Fields fields(json, where + "'s activation");
    Activation made;
    if (fields.text("function") == "relu") {
        made = {Function::Clamp, 0, INFINITY, 0};
        fields.finish();
        return made;
    }
    made.function = function_named(kActivations, fields, "function");
    if (made.function == Function::Clamp) {
        made.a = fields.real_or("min", -INFINITY);
        made.b = fields.real_or("max", INFINITY);
    } else if (made.function == Function::LeakyRelu) {
        made.a = fields.real("slope");
    } else if (made.function == Function::Elu) {
        made.a = fields.real("alpha");
        made.b = fields.real_or("scale", 1);
        made.c = fields.real_or("rate", 1);
    } else if (made.function == Function::Softplus) {
        made.a = fields.real("beta");
        made.b = fields.real("threshold");
        if (made.a == 0) fields.fail("has a 'beta' of 0");
    }
    fields.finish();
    return made;
}

class Builder {
  public:
    Builder(std::string_view bytes, size_t limit) {
        const std::string text = read_container(bytes, made_.tensors);
        for (size_t i = 0; i < made_.tensors.size(); i++) tensor_by_name_[made_.tensors[i].name] = (int)i;
        const Json json = parse_json(text, "the program");
        Fields fields(json, "the program");
        const int64_t format = fields.whole("format", INT32_MIN, INT32_MAX);
        if (format != 1) throw Refused("the program's format is " + number(format) + "; this version reads format 1");
        made_.batch = (int)fields.whole("batch", 1, 65536);
        made_.arena = fields.whole("arena", 0, kArena);
        if ((size_t)made_.arena > limit / 4)
            throw Refused("the program asks for an arena of " + number(made_.arena * 4) + " bytes, more than the limit of " + number((int64_t)limit));
        fields.get("structure");
        read_values(fields.get("values", Json::Array, "a list"));
        read_ports(fields.get("inputs", Json::Array, "a list"), "input", made_.inputs);
        read_ports(fields.get("outputs", Json::Array, "a list"), "output", made_.outputs);
        read_operations(fields.get("operations", Json::Array, "a list"));
        fields.finish();
        check_order();
        check_places();
    }

    Program take() { return std::move(made_); }

  private:
    // --- values
    void read_values(const Json& list) {
        for (size_t i = 0; i < list.items.size(); i++) {
            const std::string where = "value " + number((int64_t)i);
            Fields fields(list.items[i], where);
            const std::vector<int64_t> shape = fields.list("shape", 3, 3, 1, kSize);
            Value value;
            View& view = value.view;
            view.channels = shape[0], view.height = shape[1], view.width = shape[2];
            product(product(shape[0], shape[1], where), shape[2], where);
            if (fields.has("tensor")) {
                value.type = Value::Constant;
                value.tensor = tensor(fields.text("tensor"), fields);
                const Tensor& held = made_.tensors[value.tensor];
                if (!held.floats || held.count != value.elements()) fields.fail("is a constant of another type or size than its tensor");
                view.pitch = view.width;
                view.plane = view.width * view.height;
            } else if (fields.has("of")) {
                value.type = Value::Slice;
                value.base = (int)fields.whole("of", 0, (int64_t)i - 1);
                Value& base = made_.values[value.base];
                if (base.type != Value::Arena) fields.fail("is a slice of a value that is itself a slice or a constant");
                value.channel = fields.whole("channel", 0, base.view.channels - 1);
                if (view.height != base.view.height || view.width != base.view.width || view.channels > base.view.channels - value.channel)
                    fields.fail("is a slice that does not lie in its value");
                base.has_slices = true;
                view.pitch = base.view.pitch;
                view.plane = base.view.plane;
                view.offset = base.view.offset + value.channel * view.plane;
                view.head = value.channel == 0 ? base.view.head : 0;
            } else {
                view.offset = fields.whole("offset", 0, kArena);
                view.pitch = fields.whole("pitch", view.width, kArena);
                view.plane = fields.whole("plane", 1, kArena);
                view.head = fields.whole("head", 0, view.offset);
                if (view.offset % 16) fields.fail("has an offset that is no multiple of 16");
                if (view.plane % 16 && !(view.plane == 1 && view.height == 1 && view.width == 1))
                    fields.fail("has a plane that is no multiple of 16");
                if (view.plane != 1 && view.plane < product(view.height, view.pitch, where)) fields.fail("has a plane that is too small for its rows");
                if (product(view.channels, view.plane, where) > made_.arena - view.offset) fields.fail("does not lie in the arena");
            }
            fields.finish();
            made_.values.push_back(value);
        }
    }

    int tensor(const std::string& name, const Fields& fields) {
        const auto found = tensor_by_name_.find(name);
        if (found == tensor_by_name_.end()) fields.fail("names a tensor " + quoted(name) + " that the file lacks");
        return found->second;
    }

    int value_index(const Json& json, const char* key, Fields& fields) {
        return (int)fields.whole(json, key, 0, (int64_t)made_.values.size() - 1);
    }

    void read_ports(const Json& list, const std::string& what, std::vector<Port>& ports) {
        if (list.items.empty()) throw Refused("the program has no " + what);
        if (list.items.size() > 4096) throw Refused("the program has too many " + what + "s");
        for (size_t i = 0; i < list.items.size(); i++) {
            Fields fields(list.items[i], what + " " + number((int64_t)i));
            Port port;
            port.name = fields.text("name");
            port.value = value_index(fields.get("value"), "value", fields);
            port.shape = fields.list("shape", 0, 8, 1, kSize);
            fields.finish();
            int64_t elements = 1;
            for (int64_t size : port.shape) elements = product(elements, size, what + " " + number((int64_t)i));
            const Value& value = made_.values[port.value];
            if (elements != value.elements()) fields.fail("has another number of elements than its value");
            if (what == "input") {
                if (value.type != Value::Arena) fields.fail("is a slice or a constant");
                for (const Port& other : ports)
                    if (other.value == port.value) fields.fail("is the same value as another input");
            }
            ports.push_back(std::move(port));
        }
    }

    // --- operations
    void read_operations(const Json& list) {
        for (size_t i = 0; i < list.items.size(); i++) {
            Operation op;
            const Json* name = list.items[i].find("name");
            where_ = "operation " + number((int64_t)i);
            if (name && name->type == Json::String && !name->text.empty()) where_ += " (" + name->text.substr(0, 120) + ")";
            Fields fields(list.items[i], where_);
            op.name = fields.text("name");
            op.kind = fields.text("kind");
            const Json& inputs = fields.get("inputs", Json::Array, "a list");
            if (inputs.items.empty() || inputs.items.size() > 65536) fields.fail("has no inputs or too many");
            for (const Json& input : inputs.items) op.inputs.push_back(value_index(input, "inputs", fields));
            op.output = value_index(fields.get("output"), "output", fields);
            if (fields.has("tensors"))
                for (const auto& [role, named] : fields.get("tensors", Json::Object, "an object").members) {
                    if (named.type != Json::String) fields.fail("has tensors that are not named by strings");
                    op.tensors[role] = tensor(named.text, fields);
                }
            roles_.clear();
            op.step.out = made_.values[op.output].view;
            kind(op, fields);
            fields.finish();
            for (const auto& role : op.tensors)
                if (!roles_.count(role.first)) fields.fail("has a tensor of the unknown role " + quoted(role.first));
            made_.operations.push_back(std::move(op));
        }
        if (made_.operations.size() > 1000000) throw Refused("the program has too many operations");
    }

    void kind(Operation& op, Fields& fields) {
        static const std::map<std::string, std::pair<Kind, void (Builder::*)(Operation&, Fields&)>> kinds = {
            {"conv", {Kind::Conv, &Builder::conv}}, {"linear", {Kind::Linear, &Builder::linear}},
            {"affine", {Kind::Affine, &Builder::affine}}, {"binary", {Kind::Binary, &Builder::binary}},
            {"pool", {Kind::Pool, &Builder::pool}}, {"adaptive_pool", {Kind::AdaptivePool, &Builder::adaptive_pool}},
            {"reduce", {Kind::Reduce, &Builder::reduce}}, {"norm", {Kind::Norm, &Builder::norm}},
            {"softmax", {Kind::Softmax, &Builder::softmax}}, {"copy", {Kind::Copy, &Builder::copy}},
            {"select", {Kind::Select, &Builder::select}}, {"resample", {Kind::Resample, &Builder::resample}},
            {"matmul", {Kind::Matmul, &Builder::matmul}}, {"concat", {Kind::Concat, &Builder::concat}},
        };
        const auto found = kinds.find(op.kind);
        if (found == kinds.end()) fields.fail("is of the unknown kind " + quoted(op.kind));
        op.step.kind = found->second.first;
        (this->*found->second.second)(op, fields);
    }

    const View& in(const Operation& op, int i) const { return made_.values[op.inputs[i]].view; }
    void inputs(const Operation& op, Fields& fields, size_t least, size_t most) {
        if (op.inputs.size() < least || op.inputs.size() > most) fields.fail("has the wrong number of inputs");
    }
    void same(const View& a, const View& b, Fields& fields) {
        if (a.channels != b.channels || a.height != b.height || a.width != b.width) fields.fail("has values whose sizes do not belong together");
    }
    void sizes(const View& a, int64_t channels, int64_t height, int64_t width, Fields& fields) {
        if (a.channels != channels || a.height != height || a.width != width)
            fields.fail("has an output of another size than its inputs and attributes give");
    }

    // The tensor of a role, with so many elements; NULL where it may be absent and is.
    const Tensor* role(Operation& op, Fields& fields, const char* name, bool floats, int64_t count, bool needed) {
        roles_.insert(name);
        const auto found = op.tensors.find(name);
        if (found == op.tensors.end()) {
            if (needed) fields.fail("lacks its tensor " + quoted(name));
            return nullptr;
        }
        const Tensor& tensor = made_.tensors[found->second];
        if (tensor.floats != floats || (count >= 0 && tensor.count != count))
            fields.fail("has a tensor " + quoted(name) + " of the wrong type or size");
        return &tensor;
    }

    void activation(Operation& op, Fields& fields) {
        if (fields.has("activation")) op.step.activation = read_activation(fields.get("activation"), where_);
    }

    void residual(Operation& op, Fields& fields) {
        op.residual = op.inputs.size() == 2;
        if (op.residual) same(in(op, 1), op.step.out, fields);
        if (!fields.has("residual")) return;
        const std::string& when = fields.text("residual");
        if (when != "before" && when != "after") fields.fail("has a residual that is neither 'before' nor 'after'");
        if (!op.residual) fields.fail("says where its residual is added and has none");
        op.step.after = when == "after";
    }

    void window(Step& s, Fields& fields) {
        const auto kernel = fields.list("kernel", 2, 2, 1, 1 << 15), stride = fields.list("stride", 2, 2, 1, 1 << 15);
        const auto dilation = fields.list("dilation", 2, 2, 1, 1 << 15), padding = fields.list("padding", 4, 4, 0, 1 << 28);
        s.kernel_h = (int32_t)kernel[0], s.kernel_w = (int32_t)kernel[1];
        s.stride_h = (int32_t)stride[0], s.stride_w = (int32_t)stride[1];
        s.dilation_h = (int32_t)dilation[0], s.dilation_w = (int32_t)dilation[1];
        s.top = (int32_t)padding[0], s.left = (int32_t)padding[1], s.bottom = (int32_t)padding[2], s.right = (int32_t)padding[3];
    }

    void conv(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 2);
        Step& s = op.step;
        const View &source = in(op, 0), &out = s.out;
        window(s, fields);
        const auto size = [&](int64_t in, int64_t kernel, int64_t stride, int64_t dilation, int64_t before, int64_t after) {
            const int64_t room = in + before + after - dilation * (kernel - 1) - 1;
            return room < 0 ? 0 : room / stride + 1;
        };
        sizes(out, out.channels, size(source.height, s.kernel_h, s.stride_h, s.dilation_h, s.top, s.bottom),
              size(source.width, s.kernel_w, s.stride_w, s.dilation_w, s.left, s.right), fields);
        residual(op, fields);
        activation(op, fields);
        const int64_t taps = product(s.kernel_h, s.kernel_w, where_);
        if (taps > kTaps) fields.fail("has a kernel that is too large");
        role(op, fields, "bias", true, out.channels, false);
        op.sparse = op.tensors.count("indices") || op.tensors.count("indptr");
        if (!op.sparse) {
            s.groups = (int32_t)fields.whole_or("groups", 1, 1, kSize);
            if (source.channels % s.groups || out.channels % s.groups) fields.fail("has groups that do not divide its channels");
            role(op, fields, "weight", true, product(product(out.channels, source.channels / s.groups, where_), taps, where_), true);
            return;
        }
        op.block = (int)fields.whole("block", 1, 4);
        if (op.block == 3 || out.channels % op.block) fields.fail("has a block that is not 1, 2 or 4 or does not divide its outputs");
        const int64_t rows = out.channels / op.block;
        const Tensor& indptr = *role(op, fields, "indptr", false, rows + 1, true);
        const Tensor& indices = *role(op, fields, "indices", false, -1, true);
        if (indptr.whole(0) != 0 || indptr.whole(rows) != indices.count) fields.fail("has an indptr that does not end at its indices");
        for (int64_t r = 0; r < rows; r++)
            if (indptr.whole(r + 1) < indptr.whole(r)) fields.fail("has an indptr that does not rise");
        for (int64_t r = 0; r < rows; r++)
            for (int64_t e = indptr.whole(r); e < indptr.whole(r + 1); e++)
                if (indices.whole(e) < 0 || indices.whole(e) >= source.channels || (e > indptr.whole(r) && indices.whole(e) <= indices.whole(e - 1)))
                    fields.fail("has indices that do not ascend within its input channels");
        role(op, fields, "weight", true, product(product(indices.count, op.block, where_), taps, where_), true);
    }

    void linear(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 2);
        const View &source = in(op, 0), &out = op.step.out;
        const Tensor& weight = *role(op, fields, "weight", true, -1, true);
        if (weight.shape.size() != 2 || !weight.count) fields.fail("has a weight that is no matrix");
        const int64_t outputs = weight.shape[0], features = weight.shape[1], all = source.channels * source.height * source.width;
        op.step.rows = features == source.width && features != all;
        if (op.step.rows)
            sizes(out, source.channels, source.height, outputs, fields);
        else if (features != all || outputs != out.channels * out.height * out.width)
            fields.fail("has a weight whose sizes are not those of its values");
        role(op, fields, "bias", true, outputs, false);
        residual(op, fields);
        activation(op, fields);
    }

    void affine(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 1);
        same(in(op, 0), op.step.out, fields);
        role(op, fields, "scale", true, op.step.out.channels, false);
        role(op, fields, "shift", true, op.step.out.channels, false);
        activation(op, fields);
    }

    void binary(Operation& op, Fields& fields) {
        inputs(op, fields, 2, 2);
        const View &a = in(op, 0), &b = in(op, 1), &out = op.step.out;
        op.step.function = function_named(kBinary, fields, "function");
        activation(op, fields);
        sizes(out, std::max(a.channels, b.channels), std::max(a.height, b.height), std::max(a.width, b.width), fields);
        for (const View* v : {&a, &b})
            if ((v->channels != 1 && v->channels != out.channels) || (v->height != 1 && v->height != out.height) ||
                (v->width != 1 && v->width != out.width))
                fields.fail("has values whose sizes do not belong together");
    }

    void pool(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 1);
        Step& s = op.step;
        const View& source = in(op, 0);
        s.function = function_named(kPool, fields, "function");
        window(s, fields);
        s.count_padding = fields.truth_or("count_padding", false);
        s.divisor = fields.whole_or("divisor", 0, -(1 << 28), 1 << 28);
        if (fields.has("divisor") && !s.divisor) fields.fail("has a divisor of 0");
        if (s.function == Function::Average && (s.dilation_h != 1 || s.dilation_w != 1)) fields.fail("is a dilated average");
        sizes(s.out, source.channels, s.out.height, s.out.width, fields);
        role(op, fields, "shift", true, source.channels, false);
        activation(op, fields);
        const auto axis = [&](int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t before, int64_t after) {
            // the first window's last element and the last window's first lie in the source, and a window that begins before
            // the source meets it: its first element at or after 0 lies before `size`
            const int64_t reach = dilation * (kernel - 1), last = (out - 1) * stride - before;
            if (reach < before || last >= size) fields.fail("has windows that lie outside its source");
            for (int64_t i = 0; i < out && i * stride < before; i++) {
                const int64_t first = i * stride - before, skipped = (-first + dilation - 1) / dilation;
                if (skipped >= kernel || first + skipped * dilation >= size) fields.fail("has windows that lie outside its source");
            }
            if (last + (s.function == Function::Average ? 1 : 0) > size + after) fields.fail("has windows that lie outside its source");
        };
        axis(source.height, s.out.height, s.kernel_h, s.stride_h, s.dilation_h, s.top, s.bottom);
        axis(source.width, s.out.width, s.kernel_w, s.stride_w, s.dilation_w, s.left, s.right);
    }

    void adaptive_pool(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 1);
        op.step.function = function_named(kPool, fields, "function");
        if (in(op, 0).channels != op.step.out.channels) fields.fail("changes the number of channels");
    }

    void reduce(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 1);
        op.step.function = function_named(kReduce, fields, "function");
        const std::vector<int64_t> axes = fields.list("axes", 1, 3, 0, 2);
        for (size_t i = 1; i < axes.size(); i++)
            if (axes[i] <= axes[i - 1]) fields.fail("has axes that do not ascend");
        for (int64_t axis : axes) op.step.axes |= 1 << axis;
        const View& v = in(op, 0);
        const int32_t a = op.step.axes;
        sizes(op.step.out, a & 1 ? 1 : v.channels, a & 2 ? 1 : v.height, a & 4 ? 1 : v.width, fields);
    }

    void norm(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 1);
        Step& s = op.step;
        same(in(op, 0), s.out, fields);
        const std::string& over = fields.text("over");
        s.axes = over == "group" ? 0 : over == "channel" ? 1 : over == "width" ? 2 : 3;
        if (s.axes == 3) fields.fail("is over something unknown, " + quoted(over));
        s.groups = s.axes == 0 ? (int32_t)fields.whole("groups", 1, kSize) : 1;
        if (s.out.channels % s.groups) fields.fail("has groups that do not divide its channels");
        s.epsilon = fields.real("epsilon");
        if (s.epsilon < 0) fields.fail("has a negative epsilon");
        s.center = fields.truth_or("center", true);
        activation(op, fields);
        const int64_t parameters = s.axes == 2 ? s.out.width : s.out.channels;
        role(op, fields, "scale", true, parameters, false);
        role(op, fields, "shift", true, parameters, false);
    }

    void softmax(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 1);
        same(in(op, 0), op.step.out, fields);
        op.step.axes = (int32_t)fields.whole("axis", 0, 2);
        op.step.logarithm = fields.truth_or("log", false);
    }

    void copy(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 1);
        Step& s = op.step;
        const View& source = in(op, 0);
        const auto sizes = fields.list("sizes", 1, 8, 1, kSize);
        const auto strides = fields.list("strides", sizes.size(), sizes.size(), -kArena, kArena);
        s.start = fields.whole("start", 0, kArena);
        s.dims = (int32_t)sizes.size();
        int64_t elements = 1, lowest = s.start, highest = s.start;
        for (size_t i = 0; i < sizes.size(); i++) {
            elements = product(elements, sizes[i], where_);
            const int64_t reach = strides[i] * (sizes[i] - 1);  // below 2^58 each, and there are 8
            (reach < 0 ? lowest : highest) += reach;
            s.sizes[i] = sizes[i], s.strides[i] = strides[i];
        }
        if (elements != s.out.channels * s.out.height * s.out.width) fields.fail("has sizes that do not fill its output");
        if (lowest < 0 || highest >= source.channels * source.height * source.width) fields.fail("reads outside its source");
    }

    void indices(Operation& op, Fields& fields, const char* name, int64_t count, int64_t lowest, int64_t below, bool needed) {
        const Tensor* tensor = role(op, fields, name, false, count, needed);
        for (int64_t i = 0; tensor && i < count; i++)
            if (tensor->whole(i) < lowest || tensor->whole(i) >= below) fields.fail("has " + quoted(name) + " outside its source");
    }

    void select(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 1);
        Step& s = op.step;
        const View& v = in(op, 0);
        s.fill = fields.real_or("fill", 0);
        indices(op, fields, "channels", s.out.channels, -1, v.channels, s.out.channels != v.channels);
        indices(op, fields, "rows", s.out.height, -1, v.height, s.out.height != v.height);
        indices(op, fields, "columns", s.out.width, -1, v.width, s.out.width != v.width);
    }

    void resample(Operation& op, Fields& fields) {
        inputs(op, fields, 1, 1);
        Step& s = op.step;
        const View& v = in(op, 0);
        if (s.out.channels != v.channels) fields.fail("changes the number of channels");
        const auto axis = [&](const char* index, const char* weight, int64_t out, int64_t in, int64_t& taps) {
            const Tensor* held = role(op, fields, index, false, -1, out != in);
            const Tensor* factors = role(op, fields, weight, true, -1, held != nullptr);
            if (!held) {
                if (factors) fields.fail("has weights without their indices");
                return;
            }
            taps = held->count / out;
            if (!taps || held->count % out || factors->count != held->count) fields.fail("has indices or weights of the wrong size");
            indices(op, fields, index, held->count, 0, in, true);
        };
        axis("rows", "row_weights", s.out.height, v.height, s.row_taps);
        axis("columns", "column_weights", s.out.width, v.width, s.column_taps);
    }

    void matmul(Operation& op, Fields& fields) {
        inputs(op, fields, 2, 2);
        Step& s = op.step;
        s.transpose_a = fields.truth_or("transpose_a", false);
        s.transpose_b = fields.truth_or("transpose_b", false);
        s.factor = fields.real_or("scale", 1);
        const View &a = in(op, 0), &b = in(op, 1);
        const int64_t m = s.transpose_a ? a.width : a.height, k = s.transpose_a ? a.height : a.width;
        const int64_t l = s.transpose_b ? b.width : b.height, p = s.transpose_b ? b.height : b.width;
        if (k != l || (b.channels != 1 && b.channels != a.channels)) fields.fail("has values whose sizes do not belong together");
        sizes(s.out, a.channels, m, p, fields);
    }

    void concat(Operation& op, Fields& fields) {
        Step& s = op.step;
        s.axes = (int32_t)fields.whole("axis", 0, 2);
        int64_t joined = 0;
        const auto along = [&](const View& v, int axis) { return axis == 0 ? v.channels : axis == 1 ? v.height : v.width; };
        for (size_t i = 0; i < op.inputs.size(); i++) {
            joined += along(in(op, (int)i), s.axes);
            for (int axis = 0; axis < 3; axis++)
                if (axis != s.axes && along(in(op, (int)i), axis) != along(s.out, axis)) fields.fail("has values whose sizes do not belong together");
        }
        if (joined != along(s.out, s.axes)) fields.fail("has an output of another size than its inputs and attributes give");
    }

    // --- order, lifetimes, places

    // Channels [first, last) of the base value that value `v` stands for.
    struct Part {
        int base;
        int64_t first, last;
    };
    Part part(int v) const {
        const Value& value = made_.values[v];
        const int base = value.type == Value::Slice ? value.base : v;
        return {base, value.channel, value.channel + value.view.channels};
    }

    void check_order() {
        const int end = (int)made_.operations.size();
        first_.assign(made_.values.size(), end + 1);
        last_.assign(made_.values.size(), -1);
        std::vector<std::vector<bool>> written(made_.values.size());
        for (size_t v = 0; v < made_.values.size(); v++)
            if (made_.values[v].type == Value::Arena) written[v].assign(made_.values[v].view.channels, false);
        std::set<int> given;
        for (const Port& port : made_.inputs) {
            written[port.value].assign(written[port.value].size(), true);
            first_[port.value] = -1;
            last_[port.value] = -1;
            given.insert(port.value);
        }
        const auto read = [&](int v, int when, const std::string& where) {
            if (made_.values[v].type == Value::Constant) return;
            const Part p = part(v);
            for (int64_t c = p.first; c < p.last; c++)
                if (!written[p.base][c]) throw Refused(where + " reads value " + number(v) + " before it is written");
            last_[p.base] = std::max(last_[p.base], when);
        };
        for (int i = 0; i < end; i++) {
            Operation& op = made_.operations[i];
            const std::string where = "operation " + number(i) + " (" + op.name.substr(0, 120) + ")";
            for (int v : op.inputs) read(v, i, where);
            const Part source = part(op.inputs[0]);
            op.open_front = source.first > 0 && !written[source.base][source.first - 1];
            if (made_.values[op.output].type == Value::Constant) throw Refused(where + " writes a constant");
            const Part p = part(op.output);
            if (given.count(p.base)) throw Refused(where + " writes an input of the program");
            for (int64_t c = p.first; c < p.last; c++) {
                if (written[p.base][c]) throw Refused(where + " writes value " + number(op.output) + " a second time");
                written[p.base][c] = true;
            }
            first_[p.base] = std::min(first_[p.base], i);
            last_[p.base] = std::max(last_[p.base], i);
        }
        for (size_t i = 0; i < made_.outputs.size(); i++) read(made_.outputs[i].value, end, "output " + number((int64_t)i));
    }

    // The operation may write its output where this input lies.
    bool in_place(int writer, int input, int output) const {
        const Operation& op = made_.operations[writer];
        const bool elementwise = op.step.kind == Kind::Affine || op.step.kind == Kind::Binary;
        const bool source = op.inputs[0] == input;
        const bool residual = op.step.kind == Kind::Conv && op.inputs.size() == 2 && op.inputs[1] == input && !source;
        if (!elementwise && !residual) return false;
        if (std::find(op.inputs.begin(), op.inputs.end(), input) == op.inputs.end() || op.output != output) return false;
        const Value &a = made_.values[input], &b = made_.values[output];
        return a.type == Value::Arena && b.type == Value::Arena && !a.has_slices && !b.has_slices && a.view.channels == b.view.channels &&
               a.view.height == b.view.height && a.view.width == b.view.width && a.view.offset == b.view.offset &&
               a.view.pitch == b.view.pitch && a.view.plane == b.view.plane && a.view.head == b.view.head;
    }

    void check_places() {
        struct Place {
            int64_t from, to;
            int value;
        };
        std::vector<Place> alive;
        std::vector<int> order;
        for (size_t v = 0; v < made_.values.size(); v++)
            if (made_.values[v].type == Value::Arena && last_[v] >= first_[v]) order.push_back((int)v);
        std::sort(order.begin(), order.end(), [&](int a, int b) { return first_[a] < first_[b]; });
        for (int v : order) {
            const View& view = made_.values[v].view;
            const Place place = {view.offset - view.head, view.offset + view.channels * view.plane, v};
            alive.erase(std::remove_if(alive.begin(), alive.end(), [&](const Place& p) { return last_[p.value] < first_[v]; }), alive.end());
            for (const Place& other : alive) {
                if (other.to <= place.from || place.to <= other.from) continue;
                if (first_[v] >= 0 && last_[other.value] == first_[v] && first_[other.value] < first_[v] && in_place(first_[v], other.value, v)) continue;
                throw Refused("values " + number(other.value) + " and " + number(v) + " live at the same time in the same place");
            }
            alive.push_back(place);
        }
    }

    Program made_;
    std::map<std::string, int> tensor_by_name_;
    std::set<std::string> roles_;
    std::string where_;
    std::vector<int> first_, last_;
};

}  // namespace

int64_t product(int64_t a, int64_t b, const std::string& where) {
    int64_t made;
    if (__builtin_mul_overflow(a, b, &made) || made > kProduct) throw Refused(where + " has sizes that are too large");
    return made;
}

float Tensor::real(int64_t i) const {
    float made;
    std::memcpy(&made, bytes + 4 * i, 4);
    return made;
}

int32_t Tensor::whole(int64_t i) const {
    int32_t made;
    std::memcpy(&made, bytes + 4 * i, 4);
    return made;
}

Program read_program(std::string_view bytes, size_t memory_limit) { return Builder(bytes, memory_limit).take(); }

}  // namespace gossamer::net
