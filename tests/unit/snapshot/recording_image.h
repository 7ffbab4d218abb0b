// An image writer that keeps what it is told in memory.
#pragma once

#include <string>

#include "store/image/image_writer.h"

namespace still::testing {

struct RecordedImage {
  std::string content;  // '\0' where nothing was written, 'K' where the parent was kept.
  bool finished = false;
  absl::Status fail_with;  // Of every write.
};

class RecordingImage final : public store::ImageWriter {
 public:
  RecordingImage(RecordedImage& image, uint64_t size) : image_(image) { image_.content.assign(size, '\0'); }

  absl::Status Write(uint64_t offset, absl::string_view data) override {
    image_.content.replace(offset, data.size(), std::string(data));
    return image_.fail_with;
  }
  absl::Status WriteFromFile(int, uint64_t, uint64_t, uint64_t) override { return absl::UnimplementedError("unused"); }
  absl::Status WriteZeros(uint64_t offset, uint64_t length) override { return Fill(offset, length, '\0'); }
  absl::Status KeepParent(uint64_t offset, uint64_t length) override { return Fill(offset, length, 'K'); }
  absl::Status Finish() override {
    image_.finished = true;
    return image_.fail_with;
  }
  store::ImageStats stats() const override { return {}; }

 private:
  absl::Status Fill(uint64_t offset, uint64_t length, char with) {
    image_.content.replace(offset, length, std::string(length, with));
    return image_.fail_with;
  }
  RecordedImage& image_;
};

}  // namespace still::testing
