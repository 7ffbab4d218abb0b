#include "snapshot/export_chain.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "snapshot/export_place.h"
#include "snapshot/qcow2_writer.h"

namespace still::snapshot {
namespace {

using manifestpb::Image;
using manifestpb::Snapshot;

const Image* ImageNamed(const Snapshot& snapshot, const std::string& name) {
  for (const Image& image : snapshot.images()) {
    if (image.name() == name) return &image;
  }
  return nullptr;
}

absl::StatusOr<std::string> PickDisk(const Snapshot& snapshot, const std::string& wanted) {
  std::vector<std::string> disks;
  for (const Image& image : snapshot.images()) {
    if (image.role() == Image::ROLE_DISK) disks.push_back(image.name());
  }
  if (std::find(disks.begin(), disks.end(), wanted) != disks.end()) return wanted;
  const std::string there = absl::StrCat("the snapshot's disks are: ", absl::StrJoin(disks, ", "));
  if (!wanted.empty()) return absl::NotFoundError(absl::StrCat("no disk \"", wanted, "\"; ", there));
  if (disks.size() == 1) return disks[0];
  return absl::InvalidArgumentError(absl::StrCat("name one disk with --image; ", there));
}

class ChainExport {
 public:
  ChainExport(store::Repository& repository, const ExportChainOptions& options)
      : repository_(repository), options_(options) {}

  absl::StatusOr<std::vector<std::string>> Run() {
    STILL_RETURN_IF_ERROR(FindChain());
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<ExportPlace> place,
                           ExportPlace::Make(options_.path, ExportPlace::Kind::kDirectory));
    directory_ = place->partial();
    for (size_t i = 0; i < chain_.size(); ++i) STILL_RETURN_IF_ERROR(WriteLink(i));
    STILL_RETURN_IF_ERROR(place->Finish());
    return files_;
  }

 private:
  // The snapshot and its ancestors, oldest first.
  absl::Status FindChain() {
    STILL_ASSIGN_OR_RETURN(Snapshot next, repository_.FindSnapshot(options_.snapshot));
    STILL_ASSIGN_OR_RETURN(image_, PickDisk(next, options_.image));
    const uint64_t size = ImageNamed(next, image_)->size();
    for (;;) {
      const std::string parent_id = next.parent_id();
      chain_.push_back(std::move(next));
      if (parent_id.empty() || chain_.size() >= options_.max_length) break;
      absl::StatusOr<Snapshot> parent = repository_.FindSnapshot(parent_id);
      if (absl::IsNotFound(parent.status())) break;
      if (!parent.ok()) return parent.status();
      const Image* image = ImageNamed(*parent, image_);
      if (image == nullptr || image->size() != size) break;
      next = *std::move(parent);
    }
    std::reverse(chain_.begin(), chain_.end());
    return absl::OkStatus();
  }

  absl::Status WriteLink(size_t index) {
    const Snapshot& snapshot = chain_[index];
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageReader> reader, repository_.OpenImage(snapshot, image_));
    const std::string file =
        absl::StrCat(absl::Dec(index, absl::kZeroPad3), "-", snapshot.id().substr(0, 12), ".qcow2");
    STILL_RETURN_IF_ERROR(
        CreateQcow2(JoinPath(directory_, file), reader->size(), index > 0 ? files_.back() : std::string()));
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<Qcow2Writer> writer, Qcow2Writer::Open(JoinPath(directory_, file)));
    std::vector<store::ImageRange> ranges = {{.offset = 0, .length = reader->size()}};
    if (index > 0) {
      STILL_ASSIGN_OR_RETURN(ranges, repository_.Diff(chain_[index - 1], snapshot, image_));
    }
    auto progress = [&](uint64_t end) {
      options_.progress(
          {.stage = absl::StrCat("export ", snapshot.id().substr(0, 12)), .done = end, .total = reader->size()});
      return options_.go_on();
    };
    for (const store::ImageRange& range : ranges) {
      STILL_RETURN_IF_ERROR(writer->Copy(*reader, range, /*over_zero=*/index == 0, progress));
    }
    files_.push_back(file);
    return writer->Finish();
  }

  store::Repository& repository_;
  const ExportChainOptions& options_;
  std::string image_;
  std::vector<Snapshot> chain_;
  std::string directory_;
  std::vector<std::string> files_;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> ExportChain(store::Repository& repository, const ExportChainOptions& options) {
  return ChainExport(repository, options).Run();
}

}  // namespace still::snapshot
