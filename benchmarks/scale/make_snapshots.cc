// make-snapshots REPOSITORY MACHINES SNAPSHOTS: manifests without images in an unencrypted repository, as if so many snapshots
// of so many machines of this host had been taken. Straight to files: taking them would take hours.
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <string>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "proto/manifest.pb.h"
#include "store/block/frame.h"

namespace still::store {
namespace {

namespace manifest = ::stillpoint::manifest::v1;

constexpr uint64_t kDiskBytes = uint64_t{20} << 30;
constexpr uint32_t kSpread = 2654435761;  // Odd, so that no two numbers become one.

manifest::Snapshot Make(int64_t number, int64_t machines, int64_t snapshots, const std::string& host) {
  const int64_t machine = number % machines;
  manifest::Snapshot snapshot;
  // Spread over the folders as random ids are.
  snapshot.set_id(absl::StrFormat("%08x%024x", static_cast<uint32_t>(number) * kSpread, number));
  snapshot.set_name(absl::StrFormat("machine-%05d-%06d", machine, number));
  snapshot.set_session(absl::StrFormat("machine-%05d", machine));
  snapshot.set_session_id(absl::StrFormat("session-%05d", machine));
  snapshot.set_machine_id(absl::StrFormat("id-of-machine-%05d", machine));
  snapshot.set_host(host);
  snapshot.set_sequence(static_cast<uint64_t>(number + 1));
  snapshot.set_kind(manifest::Snapshot::DISK);
  const int64_t point = absl::ToUnixNanos(absl::Now() - absl::Minutes(snapshots - number) / 100);
  snapshot.set_point_unix_ns(point);
  snapshot.set_committed_unix_ns(point + 1);
  (*snapshot.mutable_labels())["schedule"] = "nightly";
  snapshot.mutable_consistency()->set_level(manifest::Consistency::FILESYSTEM);
  manifest::Image& image = *snapshot.add_images();
  image.set_name("vda");
  image.set_role(manifest::Image::ROLE_DISK);
  image.set_size(kDiskBytes);
  image.set_root(std::string(32, 'r'));
  return snapshot;
}

bool WriteAllOf(const std::string& repository, int64_t machines, int64_t snapshots) {
  char host[256] = {};
  (void)::gethostname(host, sizeof host - 1);
  ::mkdir((repository + "/snapshots").c_str(), 0700);
  FrameCodec codec;
  for (int64_t number = 0; number < snapshots; ++number) {
    const manifest::Snapshot snapshot = Make(number, machines, snapshots, host);
    const std::string name = "snapshots/" + snapshot.id();
    std::string object;
    codec.Encode(FrameKind::kManifest, {.keys = nullptr, .object = name}, true, snapshot.SerializeAsString(), object);
    const std::string folder = repository + "/snapshots/" + snapshot.id().substr(0, 2);
    ::mkdir(folder.c_str(), 0700);
    std::ofstream file(folder + "/" + snapshot.id(), std::ios::binary);
    if (!file.write(object.data(), static_cast<std::streamsize>(object.size()))) return false;
  }
  return true;
}

}  // namespace
}  // namespace still::store

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: make-snapshots REPOSITORY MACHINES SNAPSHOTS\n";
    return 2;
  }
  return still::store::WriteAllOf(argv[1], ::atoll(argv[2]), ::atoll(argv[3])) ? 0 : 1;
}
