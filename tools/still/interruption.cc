#include "tools/still/interruption.h"

#include <atomic>

namespace still::cli {
namespace {

std::atomic<int> interrupting_signal = 0;
static_assert(std::atomic<int>::is_always_lock_free);  // As a signal handler needs it.

void NoteInterruption(int number) { interrupting_signal = number; }

}  // namespace

Interruption::Interruption() {
  interrupting_signal = 0;
  struct sigaction action {};
  action.sa_handler = NoteInterruption;
  action.sa_flags = SA_RESTART | SA_RESETHAND;
  for (size_t i = 0; i < kSignals.size(); ++i) {
    ::sigaction(kSignals[i], nullptr, &before_[i]);
    // nohup(1) and shells' background jobs do not want to be ended.
    if (before_[i].sa_handler != SIG_IGN) ::sigaction(kSignals[i], &action, nullptr);
  }
}

Interruption::~Interruption() {
  for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  if (asked()) ::raise(interrupting_signal);
}

bool Interruption::asked() const { return interrupting_signal != 0; }

}  // namespace still::cli
