// A repository in a directory that goes with the test, and images to put into it.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "store/repository.h"

namespace still::store {

inline constexpr size_t kMiB = 1024 * 1024;

class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& base = "/tmp") {
    path_ = JoinPath(base, "still-store-test-XXXXXX");
    STILL_CHECK(::mkdtemp(path_.data()) != nullptr);
  }
  ~TemporaryDirectory() { EXPECT_TRUE(RemoveTree(path_).ok()); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Blocks that are zero, text-like, random, or copies of earlier ones, from a seed.
inline std::string MakeImage(uint64_t seed, size_t size) {
  std::mt19937_64 random(seed);
  std::string image(size, '\0');
  for (size_t at = 0; at < size; at += kBlockBytes) {
    const size_t bytes = std::min<size_t>(kBlockBytes, size - at);
    switch (random() % 8) {
      case 0:
      case 1:
        break;
      case 2:
        if (at > 0) {
          const size_t from = random() % (at / kBlockBytes) * kBlockBytes;
          image.replace(at, bytes, image.substr(from, bytes));
        }
        break;
      case 3:
        for (size_t i = 0; i < bytes; ++i) image[at + i] = static_cast<char>(random());
        break;
      default: {
        const uint64_t word = random();
        for (size_t i = 0; i < bytes; ++i) image[at + i] = static_cast<char>('a' + (word >> (i % 48)) % 16);
        break;
      }
    }
  }
  return image;
}

// Changes about `percent` of the blocks.
inline std::string ChangeImage(std::string image, uint64_t seed, int percent) {
  std::mt19937_64 random(seed);
  for (size_t at = 0; at < image.size(); at += kBlockBytes) {
    if (random() % 100 >= static_cast<uint64_t>(percent)) continue;
    const size_t bytes = std::min<size_t>(kBlockBytes, image.size() - at);
    const uint64_t word = random();
    for (size_t i = 0; i < bytes; ++i) image[at + i] = static_cast<char>(word >> (i % 56));
  }
  return image;
}

inline manifest::Snapshot Manifest(const std::string& name) {
  manifest::Snapshot snapshot;
  snapshot.set_name(name);
  snapshot.set_session("test");
  snapshot.set_kind(manifest::Snapshot::DISK);
  return snapshot;
}

// Stores one image "vda" as the snapshot `name`; gives the snapshot's id.
inline absl::StatusOr<std::string> StoreImage(Repository& repository, const std::string& name,
                                              absl::string_view content, const manifest::Image* parent = nullptr) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<SnapshotWriter> snapshot, repository.BeginSnapshot());
  ImageOptions options = {.name = "vda", .size = content.size()};
  if (parent != nullptr) {
    options.parent_root = parent->root();
    options.parent_size = parent->size();
  }
  {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<ImageWriter> image, snapshot->BeginImage(options));
    STILL_RETURN_IF_ERROR(image->Write(0, content));
    STILL_RETURN_IF_ERROR(image->Finish());
  }
  return snapshot->Commit(Manifest(name));
}

inline absl::StatusOr<std::string> LoadImage(Repository& repository, const std::string& reference,
                                             const std::string& image = "vda") {
  STILL_ASSIGN_OR_RETURN(manifest::Snapshot snapshot, repository.FindSnapshot(reference));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<ImageReader> reader, repository.OpenImage(snapshot, image));
  std::string content(reader->size(), 'x');
  STILL_RETURN_IF_ERROR(reader->Read(0, absl::MakeSpan(content)));
  return content;
}

inline std::unique_ptr<Repository> MustOpen(const RepositoryOptions& options) {
  auto repository = Repository::Open(options);
  EXPECT_TRUE(repository.ok()) << repository.status();
  return repository.ok() ? *std::move(repository) : nullptr;
}

inline std::unique_ptr<Repository> MustMake(const RepositoryOptions& options) {
  absl::Status status = Repository::Init(options);
  EXPECT_TRUE(status.ok()) << status;
  return MustOpen(options);
}

}  // namespace still::store
