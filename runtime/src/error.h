// Failures inside the runtime: one exception type, turned into a status and a text at the C
// boundary (api.cpp).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "svdq.h"

namespace svdq {

struct Error {
  svdq_status status;
  std::string text;  // "[where] 'subject': found; remedy."
};

namespace detail {
inline void append(std::string& out, std::string_view text) { out.append(text); }
inline void append(std::string& out, const char* text) { out.append(text); }
inline void append(std::string& out, const std::string& text) { out.append(text); }
inline void append(std::string& out, char c) { out.push_back(c); }
template <class Int, class = std::enable_if_t<std::is_integral_v<Int>>>
void append(std::string& out, Int value) {
  out.append(std::to_string(value));
}
}  // namespace detail

// str("dim ", 3, " of ", name): texts and integers, joined.
template <class... Parts>
std::string str(const Parts&... parts) {
  std::string out;
  (detail::append(out, parts), ...);
  return out;
}

[[noreturn]] inline void fail(svdq_status status, std::string_view where, std::string_view subject,
                              std::string_view found, std::string_view remedy) {
  throw Error{status, str("[", where, "] '", subject, "': ", found, "; ", remedy, ".")};
}

}  // namespace svdq
