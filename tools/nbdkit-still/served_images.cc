#include "tools/nbdkit-still/served_images.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace still::served {
namespace {

using store::manifest::Image;
using store::manifest::Snapshot;

std::string DisplayName(const Snapshot& snapshot) { return snapshot.name().empty() ? snapshot.id() : snapshot.name(); }

std::vector<const Image*> DisksFirst(const Snapshot& snapshot) {
  std::vector<const Image*> images;
  for (const Image& image : snapshot.images()) images.push_back(&image);
  std::stable_partition(images.begin(), images.end(),
                        [](const Image* image) { return image->role() == Image::ROLE_DISK; });
  return images;
}

absl::string_view RoleName(Image::Role role) {
  switch (role) {
    case Image::ROLE_DISK:
      return "disk";
    case Image::ROLE_RAM:
      return "memory";
    case Image::ROLE_DEVICE_STATE:
      return "device state";
    case Image::ROLE_KERNEL:
      return "kernel";
    case Image::ROLE_INITRD:
      return "initrd";
    case Image::ROLE_NVRAM:
      return "firmware variables";
    default:
      return "image";
  }
}

std::string Describe(const Snapshot& snapshot, const Image& image) {
  return absl::StrCat(RoleName(image.role()), " ", image.name(), " of snapshot ", DisplayName(snapshot), " (",
                      snapshot.session(), ")");
}

std::string ImageNames(const Snapshot& snapshot) {
  return absl::StrJoin(DisksFirst(snapshot), ", ",
                       [](std::string* out, const Image* image) { absl::StrAppend(out, image->name()); });
}

absl::Status NoSuchImage(const Snapshot& snapshot, absl::string_view name) {
  return absl::NotFoundError(absl::StrCat("snapshot ", DisplayName(snapshot), " has no image \"", name,
                                          "\"; there are: ", ImageNames(snapshot)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServedImages>> ServedImages::Open(const Options& options) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::Repository> repository, store::Repository::Open(options.repository));
  std::unique_ptr<ServedImages> served(new ServedImages(std::move(repository)));
  served->default_export_ = options.default_export;
  if (options.snapshot.empty()) return served;
  served->one_snapshot_ = true;
  STILL_ASSIGN_OR_RETURN(served->snapshot_, served->repository_->FindSnapshot(options.snapshot));
  for (const Image& image : served->snapshot_.images()) {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageReader> reader,
                           served->repository_->OpenImage(served->snapshot_, image.name()));
    served->images_[image.name()] = {.reader = std::move(reader), .description = Describe(served->snapshot_, image)};
  }
  return served;
}

absl::StatusOr<std::vector<ServedExport>> ServedImages::List() {
  std::vector<ServedExport> exports;
  if (one_snapshot_) {
    for (const Image* image : DisksFirst(snapshot_)) exports.push_back({image->name(), Describe(snapshot_, *image)});
    return exports;
  }
  STILL_ASSIGN_OR_RETURN(std::vector<Snapshot> snapshots, repository_->ListSnapshots());
  for (const Snapshot& snapshot : snapshots) {
    for (const Image* image : DisksFirst(snapshot)) {
      exports.push_back({absl::StrCat(DisplayName(snapshot), "/", image->name()), Describe(snapshot, *image)});
    }
  }
  return exports;
}

absl::StatusOr<std::string> ServedImages::DefaultExport() const {
  if (!default_export_.empty()) return default_export_;
  if (!one_snapshot_) return absl::InvalidArgumentError("name an export: SNAPSHOT/IMAGE");
  std::vector<const Image*> images = DisksFirst(snapshot_);
  std::erase_if(images, [](const Image* image) { return image->role() != Image::ROLE_DISK; });
  if (images.size() == 1) return images[0]->name();
  return absl::InvalidArgumentError(absl::StrCat("name an export; there are: ", ImageNames(snapshot_)));
}

absl::StatusOr<ServedImage> ServedImages::Find(absl::string_view export_name) {
  if (one_snapshot_) {
    auto found = images_.find(export_name);
    if (found != images_.end()) return found->second;
    return NoSuchImage(snapshot_, export_name);
  }
  // Images have no slash in their names; references to snapshots may.
  const size_t slash = export_name.rfind('/');
  if (slash == absl::string_view::npos) {
    return absl::NotFoundError(absl::StrCat("export \"", export_name, "\": name it SNAPSHOT/IMAGE"));
  }
  STILL_ASSIGN_OR_RETURN(Snapshot snapshot, repository_->FindSnapshot(export_name.substr(0, slash)));
  const absl::string_view name = export_name.substr(slash + 1);
  for (const Image& image : snapshot.images()) {
    if (image.name() != name) continue;
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageReader> reader, repository_->OpenImage(snapshot, name));
    return ServedImage{.reader = std::move(reader), .description = Describe(snapshot, image)};
  }
  return NoSuchImage(snapshot, name);
}

}  // namespace still::served
