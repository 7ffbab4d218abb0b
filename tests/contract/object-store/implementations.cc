// The stores there are, each on a bench of its own.
#include <stdlib.h>

#include <string>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "store/object/directory_store.h"
#include "tests/contract/object-store/conformance.h"
#include "tests/support/fault/fault_store.h"
#include "tests/support/fault/simulated_disk.h"

namespace still {
namespace {

constexpr uint64_t kSeed = 1;

class DirectoryBench final : public ObjectStoreBench {
 public:
  DirectoryBench() : path_(JoinPath(::testing::TempDir(), "still-objects-XXXXXX")) {
    STILL_CHECK(::mkdtemp(path_.data()) != nullptr);
  }
  ~DirectoryBench() override {
    stores_.clear();
    EXPECT_TRUE(RemoveTree(path_).ok());
  }
  ObjectStore& NewStore() override {
    stores_.push_back(*DirectoryObjectStore::Open(path_));
    return *stores_.back();
  }

 private:
  std::string path_;
  std::vector<std::unique_ptr<ObjectStore>> stores_;
};

class SimulatedBench final : public ObjectStoreBench {
 public:
  ObjectStore& NewStore() override {
    stores_.push_back(*DirectoryObjectStore::Open(disk_.root(), disk_));
    return *stores_.back();
  }

 private:
  SimulatedDisk disk_{kSeed};
  std::vector<std::unique_ptr<ObjectStore>> stores_;
};

// Without faults a decorator must be invisible.
class FaultBench final : public ObjectStoreBench {
 public:
  ObjectStore& NewStore() override {
    decorators_.push_back(std::make_unique<FaultObjectStore>(bench_.NewStore(), kSeed));
    return *decorators_.back();
  }

 private:
  DirectoryBench bench_;
  std::vector<std::unique_ptr<ObjectStore>> decorators_;
};

template <typename Bench>
std::unique_ptr<ObjectStoreBench> Make() {
  return std::make_unique<Bench>();
}

INSTANTIATE_TEST_SUITE_P(Directory, ObjectStoreContract, ::testing::Values(&Make<DirectoryBench>));
INSTANTIATE_TEST_SUITE_P(DirectoryOnSimulatedDisk, ObjectStoreContract, ::testing::Values(&Make<SimulatedBench>));
INSTANTIATE_TEST_SUITE_P(FaultDecorator, ObjectStoreContract, ::testing::Values(&Make<FaultBench>));

}  // namespace
}  // namespace still
