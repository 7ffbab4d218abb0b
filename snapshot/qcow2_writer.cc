#include "snapshot/qcow2_writer.h"

#include <signal.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/absolute_path.h"
#include "base/clock.h"
#include "base/file.h"

namespace still::snapshot {
namespace {

constexpr absl::Duration kToolLimit = absl::Seconds(60);
constexpr absl::Duration kServerPoll = absl::Milliseconds(10);
constexpr size_t kPiece = 4 << 20;
constexpr uint64_t kMaxZero = 1 << 30;  // NBD lengths have 32 bits.
constexpr uint64_t kExtentSpan = 1 << 30;
constexpr uint64_t kQcow2Sector = 512;

absl::Status Qcow2Error(const char* what) {
  return absl::UnavailableError(absl::StrCat("qcow2: ", what, ": ", nbd_get_error()));
}

}  // namespace

absl::Status CreateQcow2(const std::string& path, uint64_t size, const std::string& backing) {
  std::vector<std::string> argv = {"qemu-img", "create", "-q", "-f", "qcow2"};
  // By its name alone, so that the directory can be moved.
  if (!backing.empty()) argv.insert(argv.end(), {"-F", "qcow2", "-b", backing});
  argv.insert(argv.end(), {path, absl::StrCat((size + kQcow2Sector - 1) / kQcow2Sector * kQcow2Sector)});
  STILL_ASSIGN_OR_RETURN(CommandOutput output,
                         RunCommand({.argv = std::move(argv), .end_with_parent = true}, kToolLimit));
  if (output.exit.ok()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("qemu-img create: ", absl::StripSuffix(output.stderr_text, "\n")));
}

absl::StatusOr<std::unique_ptr<Qcow2Writer>> Qcow2Writer::Open(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<ScratchDirectory> scratch, ScratchDirectory::Make());
  const std::string socket = JoinPath(scratch->path(), "nbd.sock");
  STILL_ASSIGN_OR_RETURN(ChildProcess server,
                         ChildProcess::Start({.argv = {"qemu-nbd", "--format=qcow2", "--persistent", "--discard=unmap",
                                                       "--cache=writeback", absl::StrCat("--socket=", socket), path},
                                              .end_with_parent = true}));
  std::unique_ptr<Qcow2Writer> writer(new Qcow2Writer(std::move(scratch), std::move(server), nbd_create()));
  const absl::Duration deadline = Clock::Real().Monotonic() + kToolLimit;
  while (nbd_connect_unix(writer->handle_, socket.c_str()) != 0) {
    if (writer->server_.Wait(kServerPoll).ok() || Clock::Real().Monotonic() > deadline) {
      return absl::UnavailableError(absl::StrCat("qemu-nbd does not serve ", path));
    }
    nbd_close(std::exchange(writer->handle_, nbd_create()));
  }
  return writer;
}

Qcow2Writer::~Qcow2Writer() { nbd_close(handle_); }

absl::Status Qcow2Writer::Write(uint64_t offset, const char* data, size_t size) {
  return nbd_pwrite(handle_, data, size, offset, 0) == 0 ? absl::OkStatus() : Qcow2Error("write");
}

absl::Status Qcow2Writer::Zero(uint64_t offset, uint64_t length) {
  while (length > 0) {
    const uint64_t piece = std::min(length, kMaxZero);
    if (nbd_zero(handle_, piece, offset, 0) != 0) return Qcow2Error("zero");
    offset += piece;
    length -= piece;
  }
  return absl::OkStatus();
}

absl::Status Qcow2Writer::Finish() {
  if (nbd_flush(handle_, 0) != 0 || nbd_shutdown(handle_, 0) != 0) return Qcow2Error("flush");
  STILL_RETURN_IF_ERROR(server_.Kill(SIGTERM));
  return server_.Wait(kToolLimit).status();
}

absl::Status Qcow2Writer::Copy(store::ImageReader& reader, const store::ImageRange& range, bool over_zero,
                               const std::function<bool(uint64_t end)>& progress) {
  const absl::Status cancelled = absl::CancelledError("qcow2: cancelled");
  std::vector<char> piece(kPiece);
  const uint64_t end = std::min(reader.size(), range.offset + range.length);
  for (uint64_t at = range.offset; at < end;) {
    STILL_ASSIGN_OR_RETURN(std::vector<store::ImageExtent> extents,
                           reader.Extents(at, std::min(end - at, kExtentSpan)));
    for (const store::ImageExtent& extent : extents) {
      at = extent.offset + extent.length;
      if (extent.zero && over_zero) continue;
      if (extent.zero) {
        STILL_RETURN_IF_ERROR(Zero(extent.offset, extent.length));
        continue;
      }
      for (uint64_t from = extent.offset; from < at; from += kPiece) {
        const size_t bytes = std::min<uint64_t>(kPiece, at - from);
        STILL_RETURN_IF_ERROR(reader.Read(from, absl::MakeSpan(piece.data(), bytes)));
        STILL_RETURN_IF_ERROR(Write(from, piece.data(), bytes));
        if (!progress(from + bytes)) return cancelled;
      }
    }
    if (!progress(at)) return cancelled;
  }
  return absl::OkStatus();
}

absl::Status WriteQcow2(store::ImageReader& reader, const std::string& path,
                        const std::function<bool(uint64_t end)>& progress) {
  // Absolute, because QEMU takes what stands before a colon for a protocol.
  STILL_ASSIGN_OR_RETURN(const std::string file, AbsolutePath(path));
  STILL_RETURN_IF_ERROR(CreateQcow2(file, reader.size()));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<Qcow2Writer> writer, Qcow2Writer::Open(file));
  STILL_RETURN_IF_ERROR(writer->Copy(reader, {.offset = 0, .length = reader.size()}, /*over_zero=*/true, progress));
  return writer->Finish();
}

}  // namespace still::snapshot
