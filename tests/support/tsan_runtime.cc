// For thread-sanitizer builds only. Debian's Abseil, gRPC and protobuf are not instrumented: the sanitizer is told not to
// look into them, and what Abseil's mutexes, condition variables, notifications and counters order, and gRPC's queues. Without
// the latter every guarded variable would be reported. The definitions here come before the library's at run time; each calls
// it and says what it has done.
#include <dlfcn.h>
#include <grpc/grpc.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/base/config.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/internal/kernel_timeout.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

extern "C" const char* __tsan_default_options() { return "ignore_noninstrumented_modules=1"; }

// What gRPC's threads hand to each other without a lock looks like a race where code that its headers inlined into ours
// touches it. Left out are the reports whose innermost frame is theirs, by the header's name too, as the name of an inlined
// function has no namespace. Not those under it: a race of ours in a message, or in what a call fills in, is seen, because the
// queues below tell in which order it is handed over.
extern "C" const char* __tsan_default_suppressions() { return "race_top:grpc::\nrace_top:/grpcpp/\n"; }

namespace still::testing {
namespace {

[[noreturn]] void Unknown(const char* what) {
  std::fprintf(stderr, "tsan_runtime: %s: the library has no such function; it must be told of another\n", what);
  std::abort();
}

template <typename Function>
Function* Next(const char* name) {
  void* found = ::dlsym(RTLD_NEXT, name);
  if (found == nullptr) Unknown(name);
  return reinterpret_cast<Function*>(found);
}

// The library's function that stands behind one of ours, which is a member of the same class. The linker knows our own
// under the same (mangled) name, whatever inline namespace Abseil's version has.
template <typename Function, typename Member>
Function* Next(Member member) {
  void* ours =
      nullptr;  // A pointer to a member that is not virtual begins with the function's address (Itanium C++ ABI, 2.3).
  std::memcpy(&ours, &member, sizeof ours);
  Dl_info info{};
  if (::dladdr(ours, &info) == 0 || info.dli_sname == nullptr || info.dli_saddr != ours)
    Unknown("a function of Abseil");
  return Next<Function>(info.dli_sname);
}

// The library evaluates conditions itself, with the mutex held but before the sanitizer knows: their reads are not
// looked at.
class IgnoreReads {
 public:
  IgnoreReads() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~IgnoreReads() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

}  // namespace
}  // namespace still::testing

namespace absl {
ABSL_NAMESPACE_BEGIN

using still::testing::IgnoreReads;
using still::testing::Next;

#define STILL_TSAN_LOCK(Name)                                   \
  void Mutex::Name() ABSL_NO_THREAD_SAFETY_ANALYSIS {           \
    static auto* const next = Next<void(Mutex*)>(&Mutex::Name); \
    next(this);                                                 \
    __tsan_acquire(this);                                       \
  }
#define STILL_TSAN_UNLOCK(Name)                                 \
  void Mutex::Name() ABSL_NO_THREAD_SAFETY_ANALYSIS {           \
    static auto* const next = Next<void(Mutex*)>(&Mutex::Name); \
    IgnoreReads ignore;                                         \
    __tsan_release(this);                                       \
    next(this);                                                 \
  }
STILL_TSAN_LOCK(Lock)
STILL_TSAN_LOCK(ReaderLock)
STILL_TSAN_UNLOCK(Unlock)
STILL_TSAN_UNLOCK(ReaderUnlock)

bool Mutex::TryLock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  static auto* const next = Next<bool(Mutex*)>(&Mutex::TryLock);
  const bool locked = next(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

#if ABSL_LTS_RELEASE_VERSION >= 20240116
// Await, LockWhen and CondVar's waits are inlined; this is what they call.
bool Mutex::AwaitCommon(const Condition& condition, synchronization_internal::KernelTimeout timeout) {
  using Await = bool(Mutex*, const Condition&, synchronization_internal::KernelTimeout);
  static auto* const next = Next<Await>(&Mutex::AwaitCommon);
  bool met;
  {
    IgnoreReads ignore;
    __tsan_release(this);
    met = next(this, condition, timeout);
  }
  __tsan_acquire(this);
  return met;
}

bool Mutex::LockWhenCommon(const Condition& condition, synchronization_internal::KernelTimeout timeout, bool write) {
  using LockWhen = bool(Mutex*, const Condition&, synchronization_internal::KernelTimeout, bool);
  static auto* const next = Next<LockWhen>(&Mutex::LockWhenCommon);
  bool met;
  {
    IgnoreReads ignore;
    met = next(this, condition, timeout, write);
  }
  __tsan_acquire(this);
  return met;
}

// The mutex changes hands while it waits.
bool CondVar::WaitCommon(Mutex* mutex, synchronization_internal::KernelTimeout timeout) {
  using Wait = bool(CondVar*, Mutex*, synchronization_internal::KernelTimeout);
  static auto* const next = Next<Wait>(&CondVar::WaitCommon);
  __tsan_release(mutex);
  const bool timed_out = next(this, mutex, timeout);
  __tsan_acquire(mutex);
  return timed_out;
}
#else
void Mutex::Await(const Condition& condition) {
  static auto* const next = Next<void(Mutex*, const Condition&)>(&Mutex::Await);
  {
    IgnoreReads ignore;
    __tsan_release(this);
    next(this, condition);
  }
  __tsan_acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static auto* const next = Next<bool(Mutex*, const Condition&, Duration)>(&Mutex::AwaitWithTimeout);
  bool met;
  {
    IgnoreReads ignore;
    __tsan_release(this);
    met = next(this, condition, timeout);
  }
  __tsan_acquire(this);
  return met;
}

void Mutex::LockWhen(const Condition& condition) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  static auto* const next = Next<void(Mutex*, const Condition&)>(&Mutex::LockWhen);
  {
    IgnoreReads ignore;
    next(this, condition);
  }
  __tsan_acquire(this);
}

// The mutex changes hands while it waits.
void CondVar::Wait(Mutex* mutex) {
  static auto* const next = Next<void(CondVar*, Mutex*)>(&CondVar::Wait);
  __tsan_release(mutex);
  next(this, mutex);
  __tsan_acquire(mutex);
}
#endif

// HasBeenNotified is inlined, and with it its atomic load.
void Notification::Notify() {
  static auto* const next = Next<void(Notification*)>(&Notification::Notify);
  __tsan_release(this);
  next(this);
}

void Notification::WaitForNotification() const {
  static auto* const next = Next<void(const Notification*)>(&Notification::WaitForNotification);
  next(this);
  __tsan_acquire(const_cast<Notification*>(this));
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  static auto* const next = Next<bool(const Notification*, Duration)>(&Notification::WaitForNotificationWithTimeout);
  const bool notified = next(this, timeout);
  if (notified) __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

bool BlockingCounter::DecrementCount() {
  static auto* const next = Next<bool(BlockingCounter*)>(&BlockingCounter::DecrementCount);
  __tsan_release(this);
  return next(this);
}

void BlockingCounter::Wait() {
  static auto* const next = Next<void(BlockingCounter*)>(&BlockingCounter::Wait);
  next(this);
  __tsan_acquire(this);
}

ABSL_NAMESPACE_END
}  // namespace absl

// gRPC hands an operation to its own threads with a tag, and back with the same tag: what came before the first comes before
// what follows the second, for everything that the operation's book-keeping (CallOpSet, a server's request) holds.
extern "C" grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                                 void* reserved) {
  static auto* const next = still::testing::Next<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  __tsan_release(tag);
  return next(call, ops, count, tag, reserved);
}

extern "C" grpc_call_error grpc_server_request_call(grpc_server* server, grpc_call** call, grpc_call_details* details,
                                                    grpc_metadata_array* metadata, grpc_completion_queue* bound,
                                                    grpc_completion_queue* notified, void* tag) {
  static auto* const next = still::testing::Next<decltype(grpc_server_request_call)>("grpc_server_request_call");
  __tsan_release(tag);
  return next(server, call, details, metadata, bound, notified, tag);
}

extern "C" grpc_call_error grpc_server_request_registered_call(grpc_server* server, void* method, grpc_call** call,
                                                               gpr_timespec* deadline, grpc_metadata_array* metadata,
                                                               grpc_byte_buffer** payload, grpc_completion_queue* bound,
                                                               grpc_completion_queue* notified, void* tag) {
  static auto* const next =
      still::testing::Next<decltype(grpc_server_request_registered_call)>("grpc_server_request_registered_call");
  __tsan_release(tag);
  return next(server, method, call, deadline, metadata, payload, bound, notified, tag);
}

extern "C" grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline, void* reserved) {
  static auto* const next = still::testing::Next<decltype(grpc_completion_queue_next)>("grpc_completion_queue_next");
  const grpc_event event = next(queue, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

extern "C" grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag, gpr_timespec deadline,
                                                  void* reserved) {
  static auto* const next = still::testing::Next<decltype(grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  const grpc_event event = next(queue, tag, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(tag);
  return event;
}
