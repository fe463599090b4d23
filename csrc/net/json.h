// A strict reader of JSON for the files of programs: no duplicate keys, no trailing text, limited depth, numbers in range.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gossamer::net {

// What a file is refused for; one sentence. Never leaves the C API.
struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Json {
    enum Type { Null, Bool, Number, String, Array, Object };
    Type type = Null;
    bool truth = false;
    bool whole = false;  // the number was written as an integer and fits `integer`
    int64_t integer = 0;
    double number = 0;
    std::string text;
    std::vector<Json> items;
    std::vector<std::pair<std::string, Json>> members;

    const Json* find(std::string_view key) const {
        for (const auto& member : members)
            if (member.first == key) return &member.second;
        return nullptr;
    }
};

// `what` begins the sentence of a refusal ("the header").
Json parse_json(std::string_view text, const std::string& what);

}  // namespace gossamer::net
