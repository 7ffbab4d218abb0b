// For thread-sanitizer builds only: tells the sanitizer about absl::Mutex. Debian's libabsl is not instrumented, so the
// order that its mutexes establish is invisible, and every guarded variable would be reported. These definitions come
// before the library's at run time; each calls it and says what it has done.
#include <dlfcn.h>

#include <cstdint>

#include "absl/synchronization/mutex.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
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
