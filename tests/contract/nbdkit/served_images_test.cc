// Which names reach which images. What nbdkit makes of it: nbdkit_plugin_test.cc.
#include "tools/nbdkit-still/served_images.h"

#include <gmock/gmock.h>

#include "tests/unit/store/test_repository.h"

namespace still::served {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ServedImagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    repository_ = store::MustMake({.path = JoinPath(directory_.path(), "repo")});
    ASSERT_TRUE(Store("one", {"vda"}).ok());
    ASSERT_TRUE(Store("two", {"ram", "vda", "vdb"}).ok());
  }
  absl::Status Store(const std::string& name, const std::vector<std::string>& images) {
    STILL_ASSIGN_OR_RETURN(auto writer, repository_->BeginSnapshot());
    for (const std::string& image : images) {
      auto role = image == "ram" ? store::manifest::Image::ROLE_RAM : store::manifest::Image::ROLE_DISK;
      STILL_ASSIGN_OR_RETURN(auto out, writer->BeginImage({.name = image, .role = role, .size = 4096}));
      STILL_RETURN_IF_ERROR(out->Write(0, std::string(4096, image.back())));
      STILL_RETURN_IF_ERROR(out->Finish());
    }
    store::manifest::Snapshot manifest = store::Manifest(name);
    manifest.set_point_unix_ns(++points_);
    return writer->Commit(std::move(manifest)).status();
  }
  std::unique_ptr<ServedImages> Open(const std::string& snapshot) {
    auto opened =
        ServedImages::Open({.repository = {.path = JoinPath(directory_.path(), "repo")}, .snapshot = snapshot});
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? *std::move(opened) : nullptr;
  }
  static std::vector<std::string> Names(ServedImages& images) {
    std::vector<std::string> names;
    auto list = images.List();
    EXPECT_TRUE(list.ok()) << list.status();
    for (const ServedExport& entry : *list) names.push_back(entry.name);
    return names;
  }
  static char FirstByte(ServedImages& images, const std::string& name) {
    auto found = images.Find(name);
    EXPECT_TRUE(found.ok()) << found.status();
    char byte = 0;
    if (!found.ok()) return byte;
    EXPECT_TRUE(found->reader->Read(0, absl::MakeSpan(&byte, 1)).ok());
    return byte;
  }

  store::TemporaryDirectory directory_;
  std::unique_ptr<store::Repository> repository_;
  int64_t points_ = 0;
};

TEST_F(ServedImagesTest, OneSnapshotIsServedByTheNamesOfItsImagesDisksFirst) {
  auto images = Open("two");
  EXPECT_THAT(Names(*images), ElementsAre("vda", "vdb", "ram"));
  EXPECT_EQ(FirstByte(*images, "vdb"), 'b');
  EXPECT_EQ(FirstByte(*images, "ram"), 'm');
  EXPECT_THAT(images->Find("vdc").status().message(), HasSubstr("there are: vda, vdb, ram"));
  EXPECT_TRUE(absl::IsInvalidArgument(images->DefaultExport().status()));
  EXPECT_EQ(*Open("one")->DefaultExport(), "vda");
}

TEST_F(ServedImagesTest, WithoutASnapshotEveryReferenceIsAnExport) {
  auto images = Open("");
  EXPECT_THAT(Names(*images), ElementsAre("one/vda", "two/vda", "two/vdb", "two/ram"));
  EXPECT_EQ(FirstByte(*images, "latest/vdb"), 'b');
  EXPECT_EQ(FirstByte(*images, "test@latest/ram"), 'm');
  EXPECT_TRUE(absl::IsNotFound(images->Find("vda").status()));
  EXPECT_TRUE(absl::IsNotFound(images->Find("three/vda").status()));
  EXPECT_TRUE(absl::IsNotFound(images->Find("one/vdb").status()));
  ASSERT_TRUE(Store("three", {"vda"}).ok());
  EXPECT_EQ(FirstByte(*images, "three/vda"), 'a') << "snapshots that came later are reached too";
}

TEST_F(ServedImagesTest, AServedSnapshotIsHeldAgainstPruneAndAListIsNot) {
  auto deleted = [&] {
    auto report = repository_->Prune({.grace = absl::ZeroDuration()});
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? report->packs_deleted : 0;
  };
  auto one = Open("one");
  auto two = repository_->FindSnapshot("two");
  ASSERT_TRUE(two.ok());
  ASSERT_TRUE(repository_->Forget({two->id()}).ok());
  EXPECT_EQ(deleted(), 0u);
  EXPECT_EQ(deleted(), 0u);
  one.reset();
  auto all = Open("");
  EXPECT_THAT(Names(*all), ElementsAre("one/vda"));
  EXPECT_GT(deleted(), 0u);
}

}  // namespace
}  // namespace still::served
