#include "json.h"

#include <algorithm>

#include "error.h"

namespace svdq {
namespace {

constexpr int kMaxDepth = 32;
constexpr size_t kMaxValues = 1'000'000;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// The length of the UTF-8 sequence at `at`, or 0 if it is not valid (overlong, surrogate, cut off,
// …).
size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) -> unsigned {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0;
  };
  const auto follows = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return follows(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    if (!follows(1) || !follows(2)) return 0;
    if (first == 0xE0 && byte(1) < 0xA0) return 0;  // overlong
    if (first == 0xED && byte(1) > 0x9F) return 0;  // surrogate
    return 3;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    if (!follows(1) || !follows(2) || !follows(3)) return 0;
    if (first == 0xF0 && byte(1) < 0x90) return 0;  // overlong
    if (first == 0xF4 && byte(1) > 0x8F) return 0;  // above U+10FFFF
    return 4;
  }
  return 0;
}

class Parser {
 public:
  Parser(std::string_view text, std::string_view subject) : text_(text), subject_(subject) {}

  Json parse() {
    Json root = value(0);
    if (at_ != text_.size()) bad("text after the end of the value");
    return root;
  }

 private:
  [[noreturn]] void bad(std::string_view what) const {
    fail(SVDQ_MALFORMED, "open", subject_, str("manifest byte ", at_, ": ", what),
         "the file was not written by svdqc; compile the model again");
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void expect(char c) {
    if (at_ >= text_.size() || text_[at_] != c) bad(str("expected '", c, "'"));
    ++at_;
  }

  bool accept(char c) {
    if (peek() != c || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }

  void word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) bad("not a JSON value");
    at_ += expected.size();
  }

  Json value(int depth) {
    if (depth > kMaxDepth) bad(str("nested deeper than ", kMaxDepth));
    if (++num_values_ > kMaxValues) bad(str("more than ", kMaxValues, " values"));
    const size_t begin = at_;
    Json result;
    switch (peek()) {
      case '{':
        object(result, depth);
        break;
      case '[':
        array(result, depth);
        break;
      case '"':
        result.kind = Json::Kind::string;
        result.text = string();
        break;
      case 't':
        word("true");
        result.kind = Json::Kind::boolean;
        result.integer = 1;
        break;
      case 'f':
        word("false");
        result.kind = Json::Kind::boolean;
        break;
      case 'n':
        word("null");
        break;
      default:
        number(result);
    }
    result.raw = text_.substr(begin, at_ - begin);
    return result;
  }

  void object(Json& result, int depth) {
    result.kind = Json::Kind::object;
    expect('{');
    if (accept('}')) return;
    do {
      std::string key = string();
      if (!result.keys.empty() && key <= result.keys.back()) {
        bad(str("key '", key, key == result.keys.back() ? "' appears twice" : "' out of order"));
      }
      expect(':');
      result.keys.push_back(std::move(key));
      result.items.push_back(value(depth + 1));
    } while (accept(','));
    expect('}');
  }

  void array(Json& result, int depth) {
    result.kind = Json::Kind::array;
    expect('[');
    if (accept(']')) return;
    do {
      result.items.push_back(value(depth + 1));
    } while (accept(','));
    expect(']');
  }

  std::string string() {
    expect('"');
    std::string out;
    for (;;) {
      if (at_ >= text_.size()) bad("a string that does not end");
      const char c = text_[at_];
      if (c == '"') break;
      if (static_cast<unsigned char>(c) < 0x20) bad("a control character in a string");
      if (c == '\\') {
        ++at_;
        out.push_back(escape());
        continue;
      }
      const size_t length = utf8_length(text_, at_);
      if (length == 0) bad("not UTF-8");
      out.append(text_.substr(at_, length));
      at_ += length;
    }
    ++at_;
    return out;
  }

  char escape() {
    const char c = peek();
    if (at_ < text_.size()) ++at_;
    switch (c) {
      case '"':
        return '"';
      case '\\':
        return '\\';
      case 'b':
        return '\b';
      case 'f':
        return '\f';
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'u': {  // only where JSON demands it: the other control characters
        unsigned code = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
          const char h = peek();
          if (is_digit(h)) {
            code = code * 16 + static_cast<unsigned>(h - '0');
          } else if (h >= 'a' && h <= 'f') {
            code = code * 16 + static_cast<unsigned>(h - 'a' + 10);
          } else {
            bad("not an escape");
          }
        }
        if (code >= 0x20) bad("an escape that is not needed");
        return static_cast<char>(code);
      }
      default:
        bad("not an escape");
    }
  }

  void digits() {
    if (!is_digit(peek())) bad("not a JSON value");
    while (is_digit(peek())) ++at_;
  }

  void number(Json& result) {
    const size_t begin = at_;
    accept('-');
    if (!accept('0')) digits();
    bool is_integer = true;
    if (accept('.')) {
      is_integer = false;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      is_integer = false;
      ++at_;
      if (!accept('-')) accept('+');
      digits();
    }
    if (!is_integer) {
      result.kind = Json::Kind::real;
      return;
    }
    result.kind = Json::Kind::integer;
    const bool negative = text_[begin] == '-';
    for (size_t i = begin + (negative ? 1 : 0); i < at_; ++i) {
      const int64_t digit = text_[i] - '0';
      if (__builtin_mul_overflow(result.integer, int64_t{10}, &result.integer) ||
          __builtin_sub_overflow(result.integer, digit, &result.integer)) {
        bad("an integer beyond 64 bits");
      }
    }
    if (!negative && __builtin_sub_overflow(int64_t{0}, result.integer, &result.integer)) {
      bad("an integer beyond 64 bits");
    }
  }

  std::string_view text_, subject_;
  size_t at_ = 0;
  size_t num_values_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  if (kind != Kind::object) return nullptr;
  const auto found = std::lower_bound(keys.begin(), keys.end(), key);
  if (found == keys.end() || *found != key) return nullptr;
  return &items[static_cast<size_t>(found - keys.begin())];
}

Json parse_json(std::string_view text, std::string_view subject) {
  return Parser(text, subject).parse();
}

bool valid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

std::string json_quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += "\\u00";
          out.push_back("0123456789abcdef"[c >> 4]);
          out.push_back("0123456789abcdef"[c & 15]);
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
  return out;
}

}  // namespace svdq
