#include "session/vsock/device/byte_queue.h"

#include <random>
#include <string>

#include "gtest/gtest.h"

namespace still::vsock {
namespace {

std::string Peek(ByteQueue& queue) {
  iovec parts[2];
  std::string content;
  int count = queue.Front(parts);
  for (int i = 0; i < count; ++i) content.append(static_cast<char*>(parts[i].iov_base), parts[i].iov_len);
  return content;
}

bool Append(ByteQueue& queue, const std::string& bytes) {
  return queue.Append(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

TEST(ByteQueueTest, TakesNoMoreThanItsLimitAndNothingOfWhatIsTooMuch) {
  ByteQueue queue(10);
  EXPECT_TRUE(Append(queue, "12345678"));
  EXPECT_FALSE(Append(queue, "abc"));
  EXPECT_EQ(Peek(queue), "12345678");
  EXPECT_TRUE(Append(queue, "ab"));
  EXPECT_FALSE(Append(queue, "x"));
  EXPECT_EQ(Peek(queue), "12345678ab");
}

// Once killed the hypervisor: no byte into a queue that has no memory yet.
TEST(ByteQueueTest, NothingIntoAnEmptyQueueIsNothing) {
  ByteQueue queue(10);
  EXPECT_TRUE(Append(queue, ""));
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(Peek(queue), "");
}

TEST(ByteQueueTest, BehavesAsAStringDoes) {
  constexpr uint32_t kSeed = 20251121;
  std::mt19937 random(kSeed);
  ByteQueue queue(50'000);
  std::string model;
  for (int step = 0; step < 20'000; ++step) {
    if (random() % 2 == 0) {
      std::string piece(random() % 9000, '\0');
      for (char& byte : piece) byte = static_cast<char>(random());
      bool fits = model.size() + piece.size() <= 50'000;
      ASSERT_EQ(Append(queue, piece), fits);
      if (fits) model += piece;
    } else if (!model.empty()) {
      size_t count = 1 + random() % std::min<size_t>(model.size(), 8000);
      queue.Consume(count);
      model.erase(0, count);
    }
    ASSERT_EQ(queue.size(), model.size());
    ASSERT_EQ(queue.room(), 50'000 - model.size());
    if (step % 100 == 0) {
      ASSERT_EQ(Peek(queue), model);
    }
  }
}

}  // namespace
}  // namespace still::vsock
