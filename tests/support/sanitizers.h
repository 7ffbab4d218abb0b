// Which sanitizer the tests are built with, for those that look at what it changes.
#pragma once

namespace still::testing {

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define STILL_THREAD_SANITIZER 1
#endif
#if __has_feature(address_sanitizer)
#define STILL_ADDRESS_SANITIZER 1
#endif
#endif

#ifdef STILL_THREAD_SANITIZER
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

#ifdef STILL_ADDRESS_SANITIZER
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

}  // namespace still::testing
