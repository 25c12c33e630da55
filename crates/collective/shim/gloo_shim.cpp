#include "gloo_shim.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <typeinfo>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/exception.h>

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

namespace {

// How often a rank that is leaving asks the store who else has left, and looks whether the group was aborted.
constexpr auto kLeavePoll = milliseconds(5);

// The connections of a process group are protected members: a subclass may reach them.
class OpenGloo : public c10d::ProcessGroupGloo {
 public:
  using c10d::ProcessGroupGloo::ProcessGroupGloo;

  // Fails what waits on any connection, here and, since the connections close, on the peers. Without this a pending
  // operation would stay in Gloo until its own timeout.
  void break_connections(const std::string& why) {
    for (const auto& context : contexts_) {
      for (int peer = 0; peer < getSize(); ++peer) {
        if (peer == getRank()) continue;
        try {
          auto& pair = context->getPair(peer);
          if (!pair) continue;
          if (std::strcmp(typeid(*pair).name(), "N4gloo9transport3tcp4PairE") == 0) {
            // tcp::Pair's first base is transport::Pair, so both begin at the same address.
            reinterpret_cast<gloo::transport::tcp::Pair*>(pair.get())->signalExceptionExternal(why);
          } else {
            context->closeConnections();
            break;
          }
        } catch (...) {
          // The connection is gone already.
        }
      }
    }
  }
};

// What the waiters of one group share.
struct Signal {
  std::mutex mutex;
  std::condition_variable changed;
  bool aborted = false;
};

void write_text(const std::string& message, char* text, size_t text_bytes) {
  if (text == nullptr || text_bytes == 0) return;
  // c10's messages go on with source positions and a backtrace, which help nobody who reads a log.
  const std::string line = message.substr(0, message.find('\n'));
  const size_t length = std::min(line.size(), text_bytes - 1);
  std::memcpy(text, line.data(), length);
  text[length] = '\0';
}

bool tells_of_timeout(const std::string& message) {
  // c10d and Gloo have no exception class of their own for most timeouts.
  return message.find("imed out") != std::string::npos || message.find("imeout") != std::string::npos;
}

// Sorts the exception that is being handled. Call it inside a catch block only.
int32_t status_of_current(char* text, size_t text_bytes) {
  try {
    throw;
  } catch (const c10d::TimeoutError& error) {
    write_text(error.what_without_backtrace(), text, text_bytes);
    return CG_TIMEOUT;
  } catch (const c10::DistError& error) {
    const std::string message = error.what_without_backtrace();
    write_text(message, text, text_bytes);
    return tells_of_timeout(message) ? CG_TIMEOUT : CG_PEER_LOST;
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    write_text(message, text, text_bytes);
    return tells_of_timeout(message) ? CG_TIMEOUT : CG_OTHER;
  } catch (const gloo::IoException& error) {
    const std::string message = error.what();
    write_text(message, text, text_bytes);
    return tells_of_timeout(message) ? CG_TIMEOUT : CG_PEER_LOST;
  } catch (const std::exception& error) {
    write_text(error.what(), text, text_bytes);
    return CG_OTHER;
  } catch (...) {
    write_text("unknown C++ exception", text, text_bytes);
    return CG_OTHER;
  }
}

} // namespace

struct CgGroup {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<OpenGloo> gloo;
  std::shared_ptr<Signal> signal = std::make_shared<Signal>();
  std::shared_ptr<std::atomic<int64_t>> pending = std::make_shared<std::atomic<int64_t>>(0);
};

struct CgOp {
  c10::intrusive_ptr<c10d::Work> work;
  std::shared_ptr<Signal> signal;
  std::shared_ptr<bool> done; // guarded by signal->mutex
};

namespace {

CgOp* watch(CgGroup* group, c10::intrusive_ptr<c10d::Work> work) {
  auto done = std::make_shared<bool>(false);
  group->pending->fetch_add(1);
  work->getFuture()->addCallback(
      [signal = group->signal, pending = group->pending, done](c10::ivalue::Future&) {
        pending->fetch_sub(1);
        std::lock_guard<std::mutex> lock(signal->mutex);
        *done = true;
        signal->changed.notify_all();
      });
  return new CgOp{std::move(work), group->signal, std::move(done)};
}

} // namespace

int32_t cg_connect(const CgConnect* options, CgGroup** out, char* text, size_t text_bytes) {
  try {
    const milliseconds timeout(options->timeout_ms);
    c10d::TCPStoreOptions store_options;
    store_options.port = options->port;
    store_options.isServer = options->listen_fd >= 0;
    store_options.numWorkers = static_cast<size_t>(options->world);
    store_options.waitWorkers = false;
    store_options.timeout = timeout;
    if (options->listen_fd >= 0) store_options.masterListenFd = options->listen_fd;
    auto tcp = c10::make_intrusive<c10d::TCPStore>(options->host, store_options);
    auto store = c10::make_intrusive<c10d::PrefixStore>(options->prefix, tcp);
    auto gloo_options = c10d::ProcessGroupGloo::Options::create(timeout);
    gloo_options->devices.push_back(
        c10d::ProcessGroupGloo::createDeviceForHostname(options->interface_ip, /*lazyInit=*/false));
    gloo_options->threads = options->threads;
    auto group = std::make_unique<CgGroup>();
    group->store = store;
    group->gloo = c10::make_intrusive<OpenGloo>(store, options->rank, options->world, gloo_options);
    *out = group.release();
    return CG_OK;
  } catch (...) {
    // `listen_fd` is left as it is: closing what the store may have closed would be worse than losing one descriptor.
    return status_of_current(text, text_bytes);
  }
}

int32_t cg_all_reduce(
    CgGroup* group, const void* tensor, int32_t maximum, int64_t timeout_ms, CgOp** out, char* text, size_t text_bytes) {
  try {
    std::vector<at::Tensor> tensors{*static_cast<const at::Tensor*>(tensor)};
    c10d::AllreduceOptions options;
    options.reduceOp = maximum != 0 ? c10d::ReduceOp::MAX : c10d::ReduceOp::SUM;
    options.timeout = milliseconds(timeout_ms);
    *out = watch(group, group->gloo->allreduce(tensors, options));
    return CG_OK;
  } catch (...) {
    return status_of_current(text, text_bytes);
  }
}

int32_t cg_broadcast(
    CgGroup* group, const void* tensor, int32_t root, int64_t timeout_ms, CgOp** out, char* text, size_t text_bytes) {
  try {
    std::vector<at::Tensor> tensors{*static_cast<const at::Tensor*>(tensor)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.rootTensor = 0;
    options.timeout = milliseconds(timeout_ms);
    *out = watch(group, group->gloo->broadcast(tensors, options));
    return CG_OK;
  } catch (...) {
    return status_of_current(text, text_bytes);
  }
}

int32_t cg_wait(CgOp* op, int64_t timeout_ms, char* text, size_t text_bytes) {
  try {
    {
      const auto deadline = Clock::now() + milliseconds(timeout_ms);
      std::unique_lock<std::mutex> lock(op->signal->mutex);
      op->signal->changed.wait_until(lock, deadline, [&] { return *op->done || op->signal->aborted; });
      if (op->signal->aborted) return CG_ABORTED;
      if (!*op->done) {
        write_text("not finished in time", text, text_bytes);
        return CG_TIMEOUT;
      }
    }
    auto future = op->work->getFuture();
    if (future->hasError()) std::rethrow_exception(future->exception_ptr());
    return CG_OK;
  } catch (...) {
    return status_of_current(text, text_bytes);
  }
}

void cg_op_free(CgOp* op) { delete op; }

void cg_abort(CgGroup* group) {
  try {
    {
      std::lock_guard<std::mutex> lock(group->signal->mutex);
      group->signal->aborted = true;
      group->signal->changed.notify_all();
    }
    group->gloo->break_connections("the group was aborted");
  } catch (...) {
    // The flag is set first, so that waiters are released whatever happens to the connections.
  }
}

int32_t cg_leave(CgGroup* group, int64_t timeout_ms, char* text, size_t text_bytes) {
  try {
    const auto deadline = Clock::now() + milliseconds(timeout_ms);
    const int64_t world = group->gloo->getSize();
    // Until `key` has counted `wanted` ranks.
    auto wait_for = [&](const char* key, int64_t wanted) -> int32_t {
      while (group->store->add(key, 0) < wanted) {
        {
          std::unique_lock<std::mutex> lock(group->signal->mutex);
          if (group->signal->changed.wait_for(lock, kLeavePoll, [&] { return group->signal->aborted; })) {
            return CG_ABORTED;
          }
        }
        if (Clock::now() >= deadline) {
          write_text("some rank has not left in time", text, text_bytes);
          return CG_TIMEOUT;
        }
      }
      return CG_OK;
    };
    group->store->add("done", 1);
    const int32_t all_done = wait_for("done", world);
    if (all_done != CG_OK) return all_done;
    group->store->add("left", 1);
    // The store lives in rank 0: it goes when nobody asks it any more.
    return group->gloo->getRank() == 0 ? wait_for("left", world) : static_cast<int32_t>(CG_OK);
  } catch (...) {
    return status_of_current(text, text_bytes);
  }
}

void cg_group_free(CgGroup* group) {
  try {
    // The destructor of the process group waits for what is queued: end that first.
    if (group->pending->load() > 0) group->gloo->break_connections("the group is closed");
    delete group;
  } catch (...) {
  }
}
