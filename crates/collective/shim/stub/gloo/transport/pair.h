// One connection to one peer. Only its destructor's slot is declared, which makes the class polymorphic: `typeid`
// then tells which transport is behind it.
#pragma once
#include <exception>
#include <string>

namespace gloo {
namespace transport {
class Pair {
 public:
  virtual ~Pair();
};
namespace tcp {
class Pair {
 public:
  // Fails everything that waits on this connection, and closes it.
  std::exception_ptr signalExceptionExternal(const std::string& message);
};
} // namespace tcp
} // namespace transport
} // namespace gloo
