// A set of connections, one to each peer. Never constructed, copied or sized here: only its functions are called.
#pragma once
#include <chrono>
#include <memory>

#include <gloo/transport/pair.h>

namespace gloo {
class Context {
 public:
  std::unique_ptr<transport::Pair>& getPair(int rank);
  void closeConnections();
  void setTimeout(std::chrono::milliseconds timeout);
};
} // namespace gloo
