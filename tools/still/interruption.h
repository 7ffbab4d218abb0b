// Interruption: a signal that would end the program becomes a question that its work asks now and then, for commands that
// have to put away what they have half made.
//
//   Interruption interruption;
//   absl::Status made = Make({.go_on = [&] { return !interruption.asked(); }});  // Removes what it has begun.
//
// The destructor lets the signal end the process, as if it had come only then. The same signal once more ends it at once.
// One at a time in a process; asked() is thread-safe.
#pragma once

#include <signal.h>

#include <array>

namespace still::cli {

class Interruption {
 public:
  Interruption();
  ~Interruption();
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;

  bool asked() const;

 private:
  static constexpr std::array kSignals = {SIGHUP, SIGINT, SIGTERM};
  std::array<struct sigaction, kSignals.size()> before_{};
};

}  // namespace still::cli
