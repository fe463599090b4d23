#include "net/json.h"

#include <charconv>
#include <set>

namespace gossamer::net {
namespace {

constexpr int kDepth = 64;
constexpr int kValues = 1 << 20;  // far more than a network needs, and little memory

class Reader {
  public:
    Reader(std::string_view text, const std::string& what) : text_(text), what_(what) {}

    Json document() {
        Json value = read(0);
        spaces();
        if (at_ != text_.size()) fail("has text after its end");
        return value;
    }

  private:
    [[noreturn]] void fail(const char* how) const {
        throw Refused(what_ + " is not JSON: it " + how + " (byte " + std::to_string(at_) + ")");
    }

    void spaces() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) at_++;
    }

    bool take(char wanted) {
        if (at_ >= text_.size() || text_[at_] != wanted) return false;
        at_++;
        return true;
    }

    void word(std::string_view wanted) {
        if (text_.substr(at_, wanted.size()) != wanted) fail("has an unknown word");
        at_ += wanted.size();
    }

    Json read(int depth) {
        if (depth > kDepth) fail("is nested too deeply");
        if (++values_ > kValues) fail("has too many values");
        spaces();
        if (at_ >= text_.size()) fail("ends too early");
        Json value;
        switch (text_[at_]) {
            case '{': object(value, depth); break;
            case '[': array(value, depth); break;
            case '"':
                value.type = Json::String;
                value.text = string();
                break;
            case 't':
                word("true");
                value.type = Json::Bool;
                value.truth = true;
                break;
            case 'f':
                word("false");
                value.type = Json::Bool;
                break;
            case 'n': word("null"); break;
            default: number(value);
        }
        return value;
    }

    void object(Json& value, int depth) {
        value.type = Json::Object;
        std::set<std::string> keys;
        at_++;
        spaces();
        if (take('}')) return;
        do {
            spaces();
            if (at_ >= text_.size() || text_[at_] != '"') fail("has no key where one belongs");
            std::string key = string();
            if (!keys.insert(key).second) fail("has the same key twice");
            spaces();
            if (!take(':')) fail("lacks a colon");
            Json member = read(depth + 1);
            value.members.emplace_back(std::move(key), std::move(member));
            spaces();
        } while (take(','));
        if (!take('}')) fail("lacks the end of an object");
    }

    void array(Json& value, int depth) {
        value.type = Json::Array;
        at_++;
        spaces();
        if (take(']')) return;
        do {
            value.items.push_back(read(depth + 1));
            spaces();
        } while (take(','));
        if (!take(']')) fail("lacks the end of a list");
    }

    unsigned hex4() {
        unsigned code = 0;
        for (int i = 0; i < 4; i++, at_++) {
            const char c = at_ < text_.size() ? text_[at_] : ' ';
            if (c >= '0' && c <= '9') code = 16 * code + unsigned(c - '0');
            else if (c >= 'a' && c <= 'f') code = 16 * code + unsigned(c - 'a' + 10);
            else if (c >= 'A' && c <= 'F') code = 16 * code + unsigned(c - 'A' + 10);
            else fail("has a wrong escape");
        }
        return code;
    }

    std::string string() {
        std::string made;
        at_++;
        for (;;) {
            if (at_ >= text_.size()) fail("ends inside a string");
            const unsigned char c = (unsigned char)text_[at_++];
            if (c == '"') return made;
            if (c < 0x20) fail("has a control character in a string");
            if (c != '\\') {
                made += char(c);
                continue;
            }
            if (at_ >= text_.size()) fail("ends inside a string");
            switch (text_[at_++]) {
                case '"': made += '"'; break;
                case '\\': made += '\\'; break;
                case '/': made += '/'; break;
                case 'b': made += '\b'; break;
                case 'f': made += '\f'; break;
                case 'n': made += '\n'; break;
                case 'r': made += '\r'; break;
                case 't': made += '\t'; break;
                case 'u': made += utf8(code_point()); break;
                default: fail("has a wrong escape");
            }
        }
    }

    unsigned code_point() {
        const unsigned first = hex4();
        if (first == 0) fail("has a zero character in a string");
        if (first < 0xd800 || first > 0xdfff) return first;
        if (first > 0xdbff || !take('\\') || !take('u')) fail("has half a character");
        const unsigned second = hex4();
        if (second < 0xdc00 || second > 0xdfff) fail("has half a character");
        return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    }

    static std::string utf8(unsigned code) {
        std::string made;
        if (code < 0x80) return std::string(1, char(code));
        if (code < 0x800) made = {char(0xc0 | code >> 6)};
        else if (code < 0x10000) made = {char(0xe0 | code >> 12), char(0x80 | (code >> 6 & 0x3f))};
        else made = {char(0xf0 | code >> 18), char(0x80 | (code >> 12 & 0x3f)), char(0x80 | (code >> 6 & 0x3f))};
        return made + char(0x80 | (code & 0x3f));
    }

    bool digit() const { return at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; }
    void digits() {
        if (!digit()) fail("has something that is no value");
        while (digit()) at_++;
    }

    void number(Json& value) {
        const size_t from = at_;
        value.type = Json::Number;
        take('-');
        if (take('0')) {
            if (digit()) fail("has a number that begins with 0");
        } else {
            digits();
        }
        value.whole = true;
        if (take('.')) {
            value.whole = false;
            digits();
        }
        if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
            value.whole = false;
            at_++;
            if (!take('+')) take('-');
            digits();
        }
        const char *first = text_.data() + from, *last = text_.data() + at_;
        if (std::from_chars(first, last, value.number).ec != std::errc()) fail("has a number out of range");
        if (value.whole && std::from_chars(first, last, value.integer).ec != std::errc()) fail("has an integer out of range");
    }

    std::string_view text_;
    const std::string& what_;
    size_t at_ = 0;
    int values_ = 0;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& what) { return Reader(text, what).document(); }

}  // namespace gossamer::net
