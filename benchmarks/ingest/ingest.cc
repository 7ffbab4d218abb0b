// still-ingest: stores and restores whole files through store/, and reports what it cost. Driven by ingest.py.
//
//   still-ingest init REPOSITORY
//   still-ingest import REPOSITORY NAME ROLE FILE [PARENT]     ROLE: disk or ram
//   still-ingest export REPOSITORY NAME FILE
//   still-ingest stats REPOSITORY
//
// STILL_INGEST_PASSPHRASE encrypts, STILL_INGEST_COMPRESSION (for init) is fast or small. One line of JSON on stdout: CPU and wall seconds, peak memory, bytes.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "store/repository.h"

namespace still::store {
namespace {

RepositoryOptions OptionsFor(const std::string& path) {
  RepositoryOptions options = {.path = path};
  if (const char* passphrase = std::getenv("STILL_INGEST_PASSPHRASE")) options.credentials.passphrase = passphrase;
  const char* compression = std::getenv("STILL_INGEST_COMPRESSION");
  const absl::string_view wanted = compression != nullptr ? compression : "";
  if (wanted == "fast") options.compression = Compression::kFast;
  if (wanted == "small") options.compression = Compression::kSmall;
  return options;
}

absl::Status Import(Repository& repository, const std::string& name, const std::string& role, const std::string& file,
                    const std::string& parent) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(file, O_RDONLY));
  STILL_ASSIGN_OR_RETURN(uint64_t size, FileSize(file));
  ImageOptions options = {.name = "image", .role = manifest::Image::ROLE_DISK, .size = size};
  if (role == "ram") options.role = manifest::Image::ROLE_RAM;
  if (!parent.empty()) {
    STILL_ASSIGN_OR_RETURN(manifest::Snapshot base, repository.FindSnapshot(parent));
    options.parent_root = base.images(0).root();
    options.parent_size = base.images(0).size();
  }
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<SnapshotWriter> snapshot, repository.BeginSnapshot());
  {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<ImageWriter> image, snapshot->BeginImage(options));
    STILL_RETURN_IF_ERROR(image->WriteFromFile(fd.get(), 0, 0, size));
    STILL_RETURN_IF_ERROR(image->Finish());
  }
  manifest::Snapshot described;
  described.set_name(name);
  described.set_session("ingest");
  return snapshot->Commit(std::move(described)).status();
}

absl::Status Export(Repository& repository, const std::string& name, const std::string& file) {
  STILL_ASSIGN_OR_RETURN(manifest::Snapshot snapshot, repository.FindSnapshot(name));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<ImageReader> image, repository.OpenImage(snapshot, "image"));
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(file, O_RDWR | O_CREAT | O_TRUNC));
  return image->RestoreTo(fd.get(), {});
}

absl::Status Run(const std::vector<std::string>& arguments) {
  auto at = [&](size_t i) { return i < arguments.size() ? arguments[i] : std::string(); };
  if (at(0) == "init") return Repository::Init(OptionsFor(at(1)));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<Repository> repository, Repository::Open(OptionsFor(at(1))));
  if (at(0) == "import") return Import(*repository, at(2), at(3), at(4), at(5));
  if (at(0) == "export") return Export(*repository, at(2), at(3));
  if (at(0) != "stats") return absl::InvalidArgumentError("usage: see the top of ingest.cc");
  STILL_ASSIGN_OR_RETURN(RepositoryStats stats, repository->Stats());
  std::printf("{\"stored\": %llu, \"bookkeeping\": %llu, \"blocks\": %llu}\n",
              static_cast<unsigned long long>(stats.stored_bytes),
              static_cast<unsigned long long>(stats.bookkeeping_bytes),
              static_cast<unsigned long long>(stats.unique_blocks));
  return absl::OkStatus();
}

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

int Main(int argc, char** argv) {
  const absl::Duration begin = Clock::Real().Monotonic();
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const absl::Status status = Run(arguments);
  if (!status.ok()) {
    std::fprintf(stderr, "still-ingest: %s\n", status.ToString().c_str());
    return 1;
  }
  if (!arguments.empty() && arguments[0] == "stats") return 0;
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  std::printf("{\"wall\": %.3f, \"cpu\": %.3f, \"rss_kib\": %ld}\n",
              absl::ToDoubleSeconds(Clock::Real().Monotonic() - begin),
              Seconds(usage.ru_utime) + Seconds(usage.ru_stime), usage.ru_maxrss);
  return 0;
}

}  // namespace
}  // namespace still::store

int main(int argc, char** argv) { return still::store::Main(argc, argv); }
