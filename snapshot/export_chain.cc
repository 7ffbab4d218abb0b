#include "snapshot/export_chain.h"

#include <fcntl.h>
#include <libnbd.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "base/undo.h"

namespace still::snapshot {
namespace {

using manifestpb::Image;
using manifestpb::Snapshot;

constexpr absl::Duration kToolLimit = absl::Seconds(60);
constexpr absl::Duration kServerPoll = absl::Milliseconds(10);
constexpr size_t kPiece = 4 << 20;
constexpr uint64_t kMaxZero = 1 << 30;  // NBD lengths have 32 bits.
constexpr uint64_t kExtentSpan = 1 << 30;
constexpr uint64_t kQcow2Unit = 512;

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

absl::Status RunTool(std::vector<std::string> argv) {
  const std::string program = argv[0];
  STILL_ASSIGN_OR_RETURN(CommandOutput output,
                         RunCommand({.argv = std::move(argv), .end_with_parent = true}, kToolLimit));
  if (output.exit.ok()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(program, ": ", absl::StripSuffix(output.stderr_text, "\n")));
}

// A qcow2 file that is being written, by QEMU's own tool: its format is not ours to make.
class Qcow2Writer {
 public:
  static absl::StatusOr<std::unique_ptr<Qcow2Writer>> Open(const std::string& directory, const std::string& file) {
    const std::string socket = JoinPath(directory, "nbd.sock");
    STILL_RETURN_IF_ERROR(RemoveFile(socket));
    STILL_ASSIGN_OR_RETURN(
        ChildProcess server,
        ChildProcess::Start({.argv = {"qemu-nbd", "--format=qcow2", "--persistent", "--discard=unmap",
                                      "--cache=writeback", absl::StrCat("--socket=", socket), file},
                             .working_directory = directory,
                             .end_with_parent = true}));
    std::unique_ptr<Qcow2Writer> writer(new Qcow2Writer(std::move(server), nbd_create()));
    const absl::Duration deadline = Clock::Real().Monotonic() + kToolLimit;
    while (nbd_connect_unix(writer->handle_, socket.c_str()) != 0) {
      if (writer->server_.Wait(kServerPoll).ok() || Clock::Real().Monotonic() > deadline) {
        return absl::UnavailableError(absl::StrCat("qemu-nbd does not serve ", file));
      }
      nbd_close(std::exchange(writer->handle_, nbd_create()));
    }
    return writer;
  }
  ~Qcow2Writer() { nbd_close(handle_); }

  absl::Status Write(uint64_t offset, const char* data, size_t size) {
    return nbd_pwrite(handle_, data, size, offset, 0) == 0 ? absl::OkStatus() : Error("write");
  }
  absl::Status Zero(uint64_t offset, uint64_t length) {
    while (length > 0) {
      const uint64_t piece = std::min(length, kMaxZero);
      if (nbd_zero(handle_, piece, offset, 0) != 0) return Error("zero");
      offset += piece;
      length -= piece;
    }
    return absl::OkStatus();
  }
  // Everything is durable, and the tool has closed the file.
  absl::Status Finish() {
    if (nbd_flush(handle_, 0) != 0 || nbd_shutdown(handle_, 0) != 0) return Error("flush");
    STILL_RETURN_IF_ERROR(server_.Kill(SIGTERM));
    return server_.Wait(kToolLimit).status();
  }

 private:
  Qcow2Writer(ChildProcess server, nbd_handle* handle) : server_(std::move(server)), handle_(handle) {}
  static absl::Status Error(const char* what) {
    return absl::UnavailableError(absl::StrCat("qcow2: ", what, ": ", nbd_get_error()));
  }
  ChildProcess server_;
  nbd_handle* handle_;
};

class ChainExport {
 public:
  ChainExport(store::Repository& repository, const ExportChainOptions& options)
      : repository_(repository), options_(options) {}

  absl::StatusOr<std::vector<std::string>> Run() {
    STILL_RETURN_IF_ERROR(FindChain());
    if (PathExists(options_.path)) {
      return absl::AlreadyExistsError(absl::StrCat(options_.path, " exists; choose another directory or remove it"));
    }
    directory_ = std::filesystem::absolute(absl::StrCat(options_.path, ".partial")).string();
    UndoStack undo;
    if (::mkdir(directory_.c_str(), 0700) != 0) return ErrnoStatus(errno, absl::StrCat("mkdir ", directory_));
    undo.Push("remove partial export", [this] { return RemoveTree(directory_); });
    for (size_t i = 0; i < chain_.size(); ++i) STILL_RETURN_IF_ERROR(WriteLink(i));
    STILL_RETURN_IF_ERROR(RemoveFile(JoinPath(directory_, "nbd.sock")));
    STILL_RETURN_IF_ERROR(SyncDirectory(directory_));
    if (::renameat2(AT_FDCWD, directory_.c_str(), AT_FDCWD, options_.path.c_str(), RENAME_NOREPLACE) != 0) {
      return ErrnoStatus(errno, absl::StrCat("rename ", directory_, " to ", options_.path));
    }
    undo.Disarm();
    STILL_RETURN_IF_ERROR(SyncDirectory(std::filesystem::absolute(options_.path).parent_path().string()));
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
    const uint64_t size = (reader->size() + kQcow2Unit - 1) / kQcow2Unit * kQcow2Unit;
    const std::string file =
        absl::StrCat(absl::Dec(index, absl::kZeroPad3), "-", snapshot.id().substr(0, 12), ".qcow2");
    std::vector<std::string> create = {"qemu-img", "create", "-q", "-f", "qcow2"};
    // By its name alone, so that the directory can be moved.
    if (index > 0) create.insert(create.end(), {"-F", "qcow2", "-b", files_.back()});
    create.insert(create.end(), {JoinPath(directory_, file), absl::StrCat(size)});
    STILL_RETURN_IF_ERROR(RunTool(std::move(create)));
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<Qcow2Writer> writer, Qcow2Writer::Open(directory_, file));
    std::vector<store::ImageRange> ranges = {{.offset = 0, .length = reader->size()}};
    if (index > 0) {
      STILL_ASSIGN_OR_RETURN(ranges, repository_.Diff(chain_[index - 1], snapshot, image_));
    }
    for (const store::ImageRange& range : ranges) {
      STILL_RETURN_IF_ERROR(CopyRange(*reader, range, /*over_zero=*/index == 0, *writer));
      options_.progress({.stage = absl::StrCat("export ", snapshot.id().substr(0, 12)),
                         .done = range.offset + range.length,
                         .total = reader->size()});
    }
    files_.push_back(file);
    return writer->Finish();
  }

  // `over_zero`: what is zero need not be written.
  static absl::Status CopyRange(store::ImageReader& reader, const store::ImageRange& range, bool over_zero,
                                Qcow2Writer& writer) {
    std::vector<char> piece(kPiece);
    const uint64_t end = std::min(reader.size(), range.offset + range.length);
    for (uint64_t at = range.offset; at < end;) {
      STILL_ASSIGN_OR_RETURN(std::vector<store::ImageExtent> extents,
                             reader.Extents(at, std::min(end - at, kExtentSpan)));
      for (const store::ImageExtent& extent : extents) {
        at = extent.offset + extent.length;
        if (extent.zero && over_zero) continue;
        if (extent.zero) {
          STILL_RETURN_IF_ERROR(writer.Zero(extent.offset, extent.length));
          continue;
        }
        for (uint64_t from = extent.offset; from < at; from += kPiece) {
          const size_t bytes = std::min<uint64_t>(kPiece, at - from);
          STILL_RETURN_IF_ERROR(reader.Read(from, absl::MakeSpan(piece.data(), bytes)));
          STILL_RETURN_IF_ERROR(writer.Write(from, piece.data(), bytes));
        }
      }
    }
    return absl::OkStatus();
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
