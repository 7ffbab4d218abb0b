// For thread-sanitizer builds only. Debian's Abseil, gRPC and protobuf are not instrumented: the sanitizer is told not to
// look into them, and what Abseil's mutexes, condition variables, notifications and counters order. Without the latter
// every guarded variable would be reported. The definitions here come before the library's at run time; each calls it and
// says what it has done.
#include <dlfcn.h>

#include <cstdint>

#include "absl/synchronization/mutex.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

extern "C" const char* __tsan_default_options() { return "ignore_noninstrumented_modules=1"; }

// What gRPC's threads hand to each other without a lock looks like a race where code that its headers inlined into ours
// touches it. Only reports whose innermost frame is theirs are left out, by the header's name too, as the name of an inlined
// function has no namespace; and those of an operation's own book-keeping (CallOpSet), under which no code of ours runs.
extern "C" const char* __tsan_default_suppressions() {
  return "race_top:grpc::\nrace_top:/grpcpp/\nrace:CallOpSet\nrace_top:google::protobuf::\nrace_top:/google/protobuf/"
         "\n";
}

namespace {

// The library's own function of this (mangled) name.
template <typename Function>
Function* Real(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

// The library evaluates conditions itself, with the mutex held but before the sanitizer knows: their reads are not
// looked at.
class IgnoreReads {
 public:
  IgnoreReads() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~IgnoreReads() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

}  // namespace

#define STILL_TSAN_LOCK(name)                           \
  extern "C" void name(void* mutex) {                   \
    static auto* const real = Real<void(void*)>(#name); \
    real(mutex);                                        \
    __tsan_acquire(mutex);                              \
  }
#define STILL_TSAN_UNLOCK(name)                         \
  extern "C" void name(void* mutex) {                   \
    static auto* const real = Real<void(void*)>(#name); \
    IgnoreReads ignore;                                 \
    __tsan_release(mutex);                              \
    real(mutex);                                        \
  }

// Mutex::Lock, ReaderLock, Unlock, ReaderUnlock
STILL_TSAN_LOCK(_ZN4absl7debian35Mutex4LockEv)
STILL_TSAN_LOCK(_ZN4absl7debian35Mutex10ReaderLockEv)
STILL_TSAN_UNLOCK(_ZN4absl7debian35Mutex6UnlockEv)
STILL_TSAN_UNLOCK(_ZN4absl7debian35Mutex12ReaderUnlockEv)

// Mutex::TryLock
extern "C" bool _ZN4absl7debian35Mutex7TryLockEv(void* mutex) {
  static auto* const real = Real<bool(void*)>("_ZN4absl7debian35Mutex7TryLockEv");
  bool locked = real(mutex);
  if (locked) __tsan_acquire(mutex);
  return locked;
}

// Mutex::Await
extern "C" void _ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE(void* mutex, const void* condition) {
  static auto* const real = Real<void(void*, const void*)>("_ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE");
  {
    IgnoreReads ignore;
    __tsan_release(mutex);
    real(mutex, condition);
  }
  __tsan_acquire(mutex);
}

// Mutex::AwaitWithTimeout
extern "C" bool _ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE(void* mutex,
                                                                                         const void* condition,
                                                                                         absl::Duration timeout) {
  static auto* const real = Real<bool(void*, const void*, absl::Duration)>(
      "_ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  bool met;
  {
    IgnoreReads ignore;
    __tsan_release(mutex);
    met = real(mutex, condition, timeout);
  }
  __tsan_acquire(mutex);
  return met;
}

// Mutex::LockWhen
extern "C" void _ZN4absl7debian35Mutex8LockWhenERKNS0_9ConditionE(void* mutex, const void* condition) {
  static auto* const real = Real<void(void*, const void*)>("_ZN4absl7debian35Mutex8LockWhenERKNS0_9ConditionE");
  {
    IgnoreReads ignore;
    real(mutex, condition);
  }
  __tsan_acquire(mutex);
}

#define STILL_TSAN_WAIT(name)                           \
  extern "C" void name(void* object) {                  \
    static auto* const real = Real<void(void*)>(#name); \
    real(object);                                       \
    __tsan_acquire(object);                             \
  }
#define STILL_TSAN_NOTIFY(type, name)                   \
  extern "C" type name(void* object) {                  \
    static auto* const real = Real<type(void*)>(#name); \
    __tsan_release(object);                             \
    return real(object);                                \
  }

// Notification::Notify, WaitForNotification; HasBeenNotified is inlined, and with it its atomic load.
STILL_TSAN_NOTIFY(void, _ZN4absl7debian312Notification6NotifyEv)
STILL_TSAN_WAIT(_ZNK4absl7debian312Notification19WaitForNotificationEv)

// BlockingCounter::DecrementCount, Wait
STILL_TSAN_NOTIFY(bool, _ZN4absl7debian315BlockingCounter14DecrementCountEv)
STILL_TSAN_WAIT(_ZN4absl7debian315BlockingCounter4WaitEv)

// CondVar::Wait: the mutex changes hands while it waits.
extern "C" void _ZN4absl7debian37CondVar4WaitEPNS0_5MutexE(void* variable, void* mutex) {
  static auto* const real = Real<void(void*, void*)>("_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
  __tsan_release(mutex);
  real(variable, mutex);
  __tsan_acquire(mutex);
}
