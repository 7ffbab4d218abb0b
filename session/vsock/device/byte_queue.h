// A bounded first-in-first-out queue of bytes: what a guest has sent and its host reader has not yet taken.
//
// Memory is taken as bytes come and given back when the queue is empty, so that an idle connection costs nothing.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

namespace still::vsock {

class ByteQueue {
 public:
  explicit ByteQueue(size_t limit) : limit_(limit) {}

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  size_t room() const { return limit_ - size_; }

  // False, and nothing is appended, when there is no room for all of it.
  bool Append(const uint8_t* data, size_t count) {
    if (count == 0) return true;
    if (count > room()) return false;
    if (count > capacity_ - size_) Grow(size_ + count);
    size_t tail = (head_ + size_) % capacity_;
    size_t first = std::min(count, capacity_ - tail);
    std::memcpy(&bytes_[tail], data, first);
    std::memcpy(&bytes_[0], data + first, count - first);
    size_ += count;
    return true;
  }

  // The oldest bytes, in at most two pieces; gives the number of pieces.
  int Front(iovec parts[2]) {
    size_t first = std::min(size_, capacity_ - head_);
    if (first == 0) return 0;
    parts[0] = {&bytes_[head_], first};
    if (first == size_) return 1;
    parts[1] = {&bytes_[0], size_ - first};
    return 2;
  }

  // Drops the `count` oldest bytes; 0 < count <= size().
  void Consume(size_t count) {
    size_ -= count;
    if (size_ == 0) {
      Clear();
    } else {
      head_ = (head_ + count) % capacity_;
    }
  }

  void Clear() {
    bytes_.reset();
    capacity_ = head_ = size_ = 0;
  }

 private:
  void Grow(size_t needed) {
    size_t capacity = std::max<size_t>(capacity_, 4096);
    while (capacity < needed) capacity *= 2;
    auto bytes = std::make_unique<uint8_t[]>(capacity);
    size_t first = std::min(size_, capacity_ - head_);
    if (first > 0) std::memcpy(&bytes[0], &bytes_[head_], first);
    if (size_ > first) std::memcpy(&bytes[first], &bytes_[0], size_ - first);
    bytes_ = std::move(bytes);
    capacity_ = capacity;
    head_ = 0;
  }

  size_t limit_;
  std::unique_ptr<uint8_t[]> bytes_;
  size_t capacity_ = 0;
  size_t head_ = 0;
  size_t size_ = 0;
};

}  // namespace still::vsock
