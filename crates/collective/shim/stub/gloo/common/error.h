// Gloo's exceptions, as far as `catch` needs them: same names and bases as in the library, so that the run-time type
// information of what libtorch throws matches.
#pragma once
#include <stdexcept>

namespace gloo {
struct Exception : public std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct IoException : public Exception {
  using Exception::Exception;
};
} // namespace gloo
