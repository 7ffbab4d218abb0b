// What every ObjectStore must do (store/object/object_store.h). A new implementation gives a Bench and instantiates the
// suite; it needs no tests of its own for what is said there:
//
//   INSTANTIATE_TEST_SUITE_P(S3, ObjectStoreContract, ::testing::Values([] { return std::make_unique<S3Bench>(); }));
#pragma once

#include <functional>
#include <memory>

#include "gtest/gtest.h"
#include "store/object/object_store.h"

namespace still {

// An empty place for objects, removed with the bench.
class ObjectStoreBench {
 public:
  virtual ~ObjectStoreBench() = default;
  // Another store for the same place, as another process would have. Belongs to the bench.
  virtual ObjectStore& NewStore() = 0;
};

using ObjectStoreBenchFactory = std::function<std::unique_ptr<ObjectStoreBench>()>;

class ObjectStoreContract : public ::testing::TestWithParam<ObjectStoreBenchFactory> {
 protected:
  ObjectStoreContract() : bench_(GetParam()()), store_(bench_->NewStore()), other_(bench_->NewStore()) {}

  std::unique_ptr<ObjectStoreBench> bench_;
  ObjectStore& store_;
  ObjectStore& other_;  // Sees what store_ does, at once.
};

}  // namespace still
