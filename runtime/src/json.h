// A strict reader for the manifest's canonical JSON: no white space, keys ascending, minimal
// escapes, UTF-8.
//
// Canonical form has one spelling per value, so two readers cannot disagree about a file. Depth and
// the number of values are capped; time is linear.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace svdq {

class Json {
 public:
  enum class Kind : uint8_t { null, boolean, integer, real, string, array, object };

  Kind kind = Kind::null;
  int64_t integer = 0;            // of integer and boolean
  std::string text;               // of string, decoded
  std::vector<std::string> keys;  // of object, ascending
  std::vector<Json> items;        // of array and object
  std::string_view raw;           // the value as written; points into the parsed text

  const Json* find(std::string_view key) const;  // nullptr if absent or not an object
};

// Throws Error (SVDQ_MALFORMED) naming `subject` and the byte where the text stops being canonical
// JSON.
Json parse_json(std::string_view text, std::string_view subject);

bool valid_utf8(std::string_view text);

// `text` as a JSON string, quotes included.
std::string json_quote(std::string_view text);

}  // namespace svdq
