#include "session/hypervisor/qemu/stream_window.h"

#include <endian.h>

#include <cstring>

#include "absl/strings/str_cat.h"

namespace still::session {

absl::Status BrokenStream(absl::string_view what, uint64_t at) {
  return absl::DataLossError(absl::StrCat("memory stream broken at byte ", at, ": ", what));
}

uint32_t LoadBigEndian32(const char* at) {
  uint32_t value;
  std::memcpy(&value, at, sizeof value);
  return be32toh(value);
}

std::string BigEndian32(uint32_t value) {
  value = htobe32(value);
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string BigEndian64(uint64_t value) {
  value = htobe64(value);
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

absl::StatusOr<char*> StreamWindow::Need(size_t size) {
  if (!Has(size)) STILL_RETURN_IF_ERROR(Fill(size));
  return buffer_.data() + begin_;
}

absl::StatusOr<absl::string_view> StreamWindow::Some() {
  if (begin_ == end_) {
    begin_ = end_ = 0;
    STILL_ASSIGN_OR_RETURN(end_, source_.Read(buffer_.data(), buffer_.size()));
  }
  return absl::string_view(buffer_.data() + begin_, end_ - begin_);
}

absl::Status StreamWindow::Fill(size_t size) {
  std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
  while (end_ < size) {
    STILL_ASSIGN_OR_RETURN(size_t got, source_.Read(buffer_.data() + end_, buffer_.size() - end_));
    if (got == 0) return BrokenStream("it ends in the middle", consumed_ + end_);
    end_ += got;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint8_t> StreamWindow::U8() {
  STILL_ASSIGN_OR_RETURN(char* at, Need(1));
  Consume(1);
  return static_cast<uint8_t>(*at);
}

absl::StatusOr<uint32_t> StreamWindow::U32() {
  STILL_ASSIGN_OR_RETURN(char* at, Need(4));
  Consume(4);
  return LoadBigEndian32(at);
}

absl::StatusOr<uint64_t> StreamWindow::U64() {
  STILL_ASSIGN_OR_RETURN(char* at, Need(8));
  Consume(8);
  uint64_t value;
  std::memcpy(&value, at, sizeof value);
  return be64toh(value);
}

absl::StatusOr<std::string> StreamWindow::Bytes(size_t size) {
  STILL_ASSIGN_OR_RETURN(char* at, Need(size));
  Consume(size);
  return std::string(at, size);
}

}  // namespace still::session
