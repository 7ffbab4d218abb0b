#include "session/hypervisor/qemu/memory_relay.h"

#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>

#include "absl/time/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);
constexpr size_t kStreamBytes = 48 << 20;  // Many times what sockets and pipe hold.

// QEMU's part: writes kStreamBytes of a pattern, and closes.
class Writer {
 public:
  explicit Writer(OwnedFd fd) : fd_(std::move(fd)) {
    thread_ = std::thread([this] {
      std::string block(1 << 20, '\0');
      for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<char>(i % 251);
      while (written_ < kStreamBytes) {
        size_t at = written_ % block.size();
        ssize_t put = ::send(fd_.get(), block.data() + at, block.size() - at, MSG_NOSIGNAL);
        if (put <= 0) break;
        written_ += static_cast<size_t>(put);
      }
      fd_.Reset();
    });
  }
  ~Writer() { thread_.join(); }
  size_t written() const { return written_; }

 private:
  OwnedFd fd_;
  std::atomic<size_t> written_ = 0;
  std::thread thread_;
};

struct Rig {
  SocketPair reader;  // first: the relay's sink, second: the reader's end.
  std::unique_ptr<MemoryRelay> relay;
};

Rig Make(MemoryRelay::Options options) {
  Rig rig;
  auto pair = MakeSocketPair();
  EXPECT_TRUE(pair.ok());
  rig.reader = *std::move(pair);
  auto relay = MemoryRelay::Start(std::move(rig.reader.first), options);
  EXPECT_TRUE(relay.ok()) << relay.status();
  rig.relay = *std::move(relay);
  return rig;
}

TEST(MemoryRelay, PassesEverythingOnInOrder) {
  Rig rig = Make({});
  Writer writer(rig.relay->TakeSource());
  std::string block(1 << 20, '\0');
  for (size_t got = 0; got < kStreamBytes; got += block.size()) {
    ASSERT_TRUE(ReadExactly(rig.reader.second.get(), block.data(), block.size(), "stream").ok());
    for (size_t i = 0; i < block.size(); i += 997) ASSERT_EQ(block[i], static_cast<char>(i % 251));
  }
  EXPECT_EQ(::read(rig.reader.second.get(), block.data(), 1), 0) << "no end";
  EXPECT_TRUE(rig.relay->WaitForEnd(kPatience));
  EXPECT_TRUE(rig.relay->status().ok());
  EXPECT_EQ(rig.relay->bytes(), kStreamBytes);
}

TEST(MemoryRelay, AStalledReaderIsCutOffAndTheWriterNotHeld) {
  Rig rig = Make({.stall_limit = absl::Milliseconds(50)});
  Writer writer(rig.relay->TakeSource());
  EXPECT_TRUE(rig.relay->WaitForEnd(kPatience));
  EXPECT_EQ(rig.relay->status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(writer.written(), kStreamBytes);
  EXPECT_LT(rig.relay->bytes(), kStreamBytes);
  EXPECT_EQ(rig.relay->bytes_read(), kStreamBytes);
  std::string rest(kStreamBytes, '\0');
  EXPECT_FALSE(ReadExactly(rig.reader.second.get(), rest.data(), rest.size(), "stream").ok()) << "it looks complete";
}

// It takes so little at a time that its socket never counts as writable.
TEST(MemoryRelay, ASlowReaderIsNotAStalledOne) {
  const absl::Duration limit = absl::Milliseconds(400);
  Rig rig = Make({.stall_limit = limit});
  Writer writer(rig.relay->TakeSource());
  std::string part(128 << 10, '\0');
  absl::Time end = absl::Now() + 3 * limit;
  while (absl::Now() < end) {
    ASSERT_TRUE(ReadExactly(rig.reader.second.get(), part.data(), part.size(), "stream").ok());
    absl::SleepFor(limit / 20);  // Its pace, not a wait.
  }
  EXPECT_TRUE(rig.relay->status().ok()) << rig.relay->status();
  EXPECT_TRUE(rig.relay->WaitForEnd(kPatience)) << "now it takes nothing any more";
  EXPECT_EQ(rig.relay->status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(MemoryRelay, AReaderThatIsGoneDoesNotHoldTheWriter) {
  Rig rig = Make({});
  rig.reader.second.Reset();
  Writer writer(rig.relay->TakeSource());
  EXPECT_TRUE(rig.relay->WaitForEnd(kPatience));
  EXPECT_EQ(rig.relay->status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(writer.written(), kStreamBytes);
}

TEST(MemoryRelay, CancelledItReadsOn) {
  Rig rig = Make({.stall_limit = absl::InfiniteDuration()});
  Writer writer(rig.relay->TakeSource());
  char byte;
  ASSERT_TRUE(ReadExactly(rig.reader.second.get(), &byte, 1, "stream").ok());
  rig.relay->Cancel();
  EXPECT_TRUE(rig.relay->WaitForEnd(kPatience));
  EXPECT_EQ(rig.relay->status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(writer.written(), kStreamBytes);
}

TEST(MemoryRelay, OfAStoppedVmTheStreamIsEnded) {
  Rig rig = Make({.when_lost = MemoryRelay::WhenReaderIsLost::kClose, .stall_limit = absl::Milliseconds(50)});
  Writer writer(rig.relay->TakeSource());
  EXPECT_TRUE(rig.relay->WaitForEnd(kPatience));
  EXPECT_LT(writer.written(), kStreamBytes);
}

TEST(MemoryRelay, AShorterLimitCountsAtOnce) {
  Rig rig = Make({.stall_limit = absl::InfiniteDuration()});
  Writer writer(rig.relay->TakeSource());
  EXPECT_FALSE(rig.relay->WaitForEnd(absl::Milliseconds(50)));
  rig.relay->SetStallLimit(absl::Milliseconds(10));
  EXPECT_TRUE(rig.relay->WaitForEnd(kPatience));
}

TEST(MemoryRelay, DestroyedEarlyItHoldsNobody) {
  Rig rig = Make({.stall_limit = absl::InfiniteDuration()});
  Writer writer(rig.relay->TakeSource());
  rig.relay.reset();
}

}  // namespace
}  // namespace still::session
