// What the catalog remembers of folders that were listed.
#include <stdlib.h>

#include <functional>
#include <memory>
#include <string>

#include "base/file.h"
#include "gtest/gtest.h"
#include "store/catalog/catalog.h"

namespace still::store {
namespace {

constexpr char kId[] = "00112233445566778899aabbccddeeff";

class ListingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = JoinPath(::testing::TempDir(), "still-listing-XXXXXX");
    ASSERT_NE(::mkdtemp(dir_.data()), nullptr);
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::unique_ptr<Catalog> Open() {
    absl::StatusOr<std::unique_ptr<Catalog>> catalog = Catalog::Open({.path = JoinPath(dir_, "catalog.db")});
    EXPECT_TRUE(catalog.ok()) << catalog.status();
    return catalog.ok() ? *std::move(catalog) : nullptr;
  }
  static absl::Status Change(Catalog& catalog, const std::function<absl::Status(CatalogTransaction&)>& body) {
    STILL_ASSIGN_OR_RETURN(CatalogTransaction change, catalog.Begin());
    STILL_RETURN_IF_ERROR(body(change));
    return change.Commit();
  }
  std::string dir_;
};

TEST_F(ListingTest, WhatWasListedIsRememberedUntilARowComesOrGoes) {
  std::unique_ptr<Catalog> catalog = Open();
  const auto listing = [&] { return *catalog->FindListing("snapshots/"); };
  const auto remember = [&](const CatalogListing& as_found) {
    return catalog->RememberListing("snapshots/", {.stamp = "stamp", .changes = as_found.changes}).ok();
  };
  EXPECT_EQ(listing().stamp, "");
  ASSERT_TRUE(remember(listing()));
  EXPECT_EQ(listing().stamp, "stamp");
  EXPECT_EQ(Open()->FindListing("snapshots/")->stamp, "stamp");
  EXPECT_EQ(catalog->FindListing("packs/")->stamp, "") << "each folder for itself";

  const CatalogListing before = listing();
  ASSERT_TRUE(Change(*catalog, [](CatalogTransaction& change) {
                return change.PutSnapshot({.id = kId, .session = "web"});
              }).ok());
  EXPECT_EQ(listing().stamp, "");
  ASSERT_TRUE(remember(before));
  EXPECT_EQ(listing().stamp, "") << "it was listed before the row came";
  ASSERT_TRUE(remember(listing()));
  ASSERT_TRUE(Change(*catalog, [](CatalogTransaction& change) { return change.RemoveSnapshot(kId); }).ok());
  EXPECT_EQ(listing().stamp, "");
  ASSERT_TRUE(remember(listing()));
  ASSERT_TRUE(Change(*catalog, [](CatalogTransaction& change) { return change.Clear(); }).ok());
  EXPECT_EQ(listing().stamp, "") << "also where there was no row to remove";
}

// Whoever only wants the next open to be faster must not wait for a capture's commit.
TEST_F(ListingTest, RememberingAListingWaitsForNobody) {
  std::unique_ptr<Catalog> catalog = Open();
  const CatalogListing before = *catalog->FindListing("packs/");
  absl::StatusOr<CatalogTransaction> other = catalog->Begin();
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_TRUE(absl::IsUnavailable(catalog->RememberListing("packs/", {.stamp = "a", .changes = before.changes})));
}

}  // namespace
}  // namespace still::store
