// counter: counts in memory, by rewriting the pages of a large buffer over and over. Each page carries its own count
// and a checksum, and a table beside the buffer knows every page's count: a page that was lost, mixed up or restored
// from another instant than the rest is noticed when its turn comes.
//
//   counter [--state F] [--mib N]
//   counter --report [--state F]     what it has counted, as JSON; exit 1 if a page was ever wrong
//   counter --check [--state F]      the same after it has looked at every page once more
#include <cinttypes>
#include <vector>

#include "tests/guest/program.h"

namespace still::guest {
namespace {

constexpr uint64_t kWords = 512;                 // Of a page, which is 4 KiB.
constexpr uint64_t kBatch = 64;                  // Pages rewritten at a time ...
constexpr uint64_t kPauseNs = 10 * 1000 * 1000;  // ... before the rest of the guest gets its turn: at most 25 MiB/s.
constexpr uint64_t kCheckTimeoutNs = 60ull * 1000 * 1000 * 1000;

struct State {
  std::atomic<uint64_t> pid;
  std::atomic<uint64_t> pages;
  std::atomic<uint64_t> count;   // Pages rewritten so far: the sum of all pages' counts.
  std::atomic<uint64_t> passes;  // Times the whole buffer was gone through.
  std::atomic<uint64_t> errors;  // Pages found wrong.
  std::atomic<uint64_t> first_bad_page;
  std::atomic<uint64_t> checks_wanted;
  std::atomic<uint64_t> checks_done;
};

struct Page {
  uint64_t words[kWords];
};

uint64_t Mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

class Buffer {
 public:
  explicit Buffer(uint64_t pages) : pages_(pages), counts_(pages) {
    for (uint64_t index = 0; index < pages; ++index) Fill(index);
  }

  uint64_t pages() const { return pages_.size(); }

  bool IsRight(uint64_t index) const {
    uint64_t sum = 0;
    const uint64_t seed = Seed(index);
    for (uint64_t i = 0; i < kWords; ++i) sum |= pages_[index].words[i] ^ (seed + i * seed);
    return sum == 0;
  }
  void Increment(uint64_t index) {
    ++counts_[index];
    Fill(index);
  }

 private:
  uint64_t Seed(uint64_t index) const { return Mix(index << 40 ^ counts_[index]) | 1; }
  void Fill(uint64_t index) {
    const uint64_t seed = Seed(index);
    for (uint64_t i = 0; i < kWords; ++i) pages_[index].words[i] = seed + i * seed;
  }

  std::vector<Page> pages_;
  std::vector<uint64_t> counts_;
};

void Check(const Buffer& buffer, uint64_t index, State* state) {
  if (buffer.IsRight(index)) return;
  if (state->errors.fetch_add(1) == 0) state->first_bad_page = index;
}

int Count(const std::string& state_path, uint64_t mib) {
  Buffer buffer(mib * 256);
  State* state = CreateShared<State>(state_path);
  state->pages = buffer.pages();
  state->pid = getpid();
  uint64_t next = 0;
  for (;;) {
    for (uint64_t i = 0; i < kBatch; ++i) {
      Check(buffer, next, state);
      buffer.Increment(next);
      state->count.fetch_add(1);
      if (++next == buffer.pages()) {
        next = 0;
        state->passes.fetch_add(1);
      }
    }
    const uint64_t wanted = state->checks_wanted;
    if (wanted != state->checks_done) {
      for (uint64_t index = 0; index < buffer.pages(); ++index) Check(buffer, index, state);
      state->checks_done = wanted;
    }
    SleepNs(kPauseNs);
  }
}

int Report(const std::string& state_path, bool check) {
  State& state = *OpenShared<State>(state_path);
  if (check) {
    const uint64_t wanted = state.checks_wanted.fetch_add(1) + 1;
    const uint64_t deadline = BoottimeNs() + kCheckTimeoutNs;
    while (state.checks_done < wanted) {
      errno = ETIMEDOUT;
      if (BoottimeNs() > deadline) Die("the counter does not answer");
      SleepNs(kPauseNs);
    }
  }
  std::printf("{\"running\": %s, \"count\": %" PRIu64 ", \"pages\": %" PRIu64 ", \"passes\": %" PRIu64
              ", \"errors\": %" PRIu64 ", \"first_bad_page\": %" PRIu64 ", \"now_ns\": %" PRIu64 "}\n",
              IsRunning(state.pid), state.count.load(), state.pages.load(), state.passes.load(), state.errors.load(),
              state.first_bad_page.load(), BoottimeNs());
  return state.errors == 0 ? 0 : 1;
}

}  // namespace
}  // namespace still::guest

int main(int argc, char** argv) {
  using namespace still::guest;
  const std::string state = Option(argc, argv, "--state", "/run/counter");
  const bool check = Flag(argc, argv, "--check");
  if (check || Flag(argc, argv, "--report")) return Report(state, check);
  return Count(state, NumberOption(argc, argv, "--mib", 32));
}
