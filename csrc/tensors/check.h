// Refusals: one line for people, without the file and the line of the source.
#pragma once

#include <sstream>
#include <stdexcept>

namespace fastdiff {

template <class... Parts>
[[noreturn]] __attribute__((noinline, cold)) void refuse(const Parts&... parts) {
  std::ostringstream line;
  (line << ... << parts);
  throw std::runtime_error(line.str());
}

// Throws std::runtime_error, which torch turns into Python's RuntimeError.
template <class... Parts>
inline void check(bool holds, const Parts&... parts) {
  if (__builtin_expect(!holds, 0)) refuse(parts...);
}

}  // namespace fastdiff
