// The border between Rust and libtorch's c10d: plain data in, a status and a text out, and no exception ever crosses.
// `src/ffi.rs` declares the same functions.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

enum CgStatus : int32_t {
  CG_OK = 0,
  CG_TIMEOUT = 1,
  CG_PEER_LOST = 2,
  CG_ABORTED = 3,
  CG_OTHER = 4,
};

struct CgGroup;
struct CgOp;

struct CgConnect {
  // Where the store is; on rank 0 it is served from `listen_fd`, which passes into the callee's hands.
  const char* host;
  uint16_t port;
  int32_t listen_fd; // -1 on every rank but 0
  // Address of this rank's own network interface, for the connections between ranks.
  const char* interface_ip;
  // Keys of the store are prefixed with it: members of another attempt never meet.
  const char* prefix;
  int32_t rank;
  int32_t world;
  int64_t timeout_ms;
  int32_t threads;
};

// Every function with `text` writes at most `text_bytes` there, zero-terminated, when it does not return CG_OK.
int32_t cg_connect(const CgConnect* options, CgGroup** out, char* text, size_t text_bytes);
// `tensor` points to an at::Tensor; the operation keeps its own reference to it.
// Their sum, or with `maximum` not 0 the largest.
int32_t cg_all_reduce(CgGroup*, const void* tensor, int32_t maximum, int64_t timeout_ms, CgOp** out, char* text, size_t text_bytes);
int32_t cg_broadcast(CgGroup*, const void* tensor, int32_t root, int64_t timeout_ms, CgOp** out, char* text, size_t text_bytes);
// Waits until the operation is done, the group is aborted, or the time is up. May be called again after CG_TIMEOUT.
int32_t cg_wait(CgOp*, int64_t timeout_ms, char* text, size_t text_bytes);
void cg_op_free(CgOp*);
// Callable from any thread, any number of times.
void cg_abort(CgGroup*);
// Waits until every rank has called it; rank 0, whose store the others ask, returns last.
int32_t cg_leave(CgGroup*, int64_t timeout_ms, char* text, size_t text_bytes);
void cg_group_free(CgGroup*);

}
