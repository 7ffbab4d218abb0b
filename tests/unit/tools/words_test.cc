// What commands take in the same way, and what they answer in the same way.
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/manifest.pb.h"
#include "tools/still/choose.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/format.h"
#include "tools/still/labels.h"

namespace still::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<std::string> AsItIs(const std::string& word) { return word; }

TEST(ChooseNamesTest, NamesInTheirOrderPatternsSortedEachOnce) {
  auto chosen = ChooseNames("session", {"web", "d*", "*"}, {"web", "db-2", "db-1"}, AsItIs);
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_THAT(*chosen, ElementsAre("web", "db-1", "db-2"));
  absl::Status none = ChooseNames("session", {"x?"}, {"web"}, AsItIs).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(none.message(), HasSubstr("no session fits \"x?\""));
}

TEST(LabelsTest, FiltersWantAllOfThem) {
  const std::map<std::string, std::string> labels = {{"tier", "gold"}, {"empty", ""}};
  auto fits = [&](const std::vector<std::string>& words) { return LabelFilter::Parse(words)->Fits(labels); };
  EXPECT_TRUE(fits({}));
  EXPECT_TRUE(fits({"tier", "tier=gold"}));
  EXPECT_TRUE(fits({"empty="}));
  EXPECT_FALSE(fits({"tier="})) << "no value is a value";
  EXPECT_FALSE(fits({"tier=gold", "run"}));
  EXPECT_FALSE(LabelFilter::Parse({"=gold"}).ok());
  EXPECT_FALSE(ParseLabels({"tier=\xff"}).ok());
  EXPECT_EQ(ParseLabels({"a=b=c", "d"})->at("a"), "b=c");
}

TEST(ToJsonTest, NumbersOf64BitsAreNumbersAtAnyDepth) {
  stillpoint::manifest::v1::Snapshot snapshot;
  snapshot.set_point_unix_ns(1'796'000'000'123'456'789);
  snapshot.set_sequence(~uint64_t{0});
  snapshot.add_images()->set_size(uint64_t{16} << 40);
  snapshot.mutable_consistency()->add_frozen()->set_freeze_us(7);
  (*snapshot.mutable_labels())["size"] = "12";
  const nlohmann::json json = ToJson(snapshot);
  EXPECT_EQ(json["point_unix_ns"], 1'796'000'000'123'456'789);
  EXPECT_EQ(json["sequence"], ~uint64_t{0});
  EXPECT_EQ(json["images"][0]["size"], uint64_t{16} << 40);
  EXPECT_EQ(json["consistency"]["frozen"][0]["freeze_us"], 7);
  EXPECT_EQ(json["committed_unix_ns"], 0);
  EXPECT_EQ(json["labels"]["size"], "12") << "a text stays one";
  EXPECT_EQ(json["images"][0]["bitmap"], "");
}

TEST(WordsTest, TextIsUtf8AndPathsAreBytes) {
  for (auto [line, good] : {std::pair<const char*, bool>{"do --file \xff", true},
                            {"do --name caf\xc3\xa9", true},
                            {"do --name \xff", false}}) {
    CLI::App app{"", "still"};
    Context context;
    context.AddOptions(app);
    std::string name;
    std::string file;
    bool ran = false;
    CLI::App* command = context.AddCommand(app, "do", "", [&](Context&) {
      ran = true;
      return absl::OkStatus();
    });
    command->add_option("--name", name);
    command->add_option("--file", file)->type_name(kFileType);
    app.parse(std::string(line) + " --state " + ::testing::TempDir());
    absl::Status status = context.RunChosen(app);
    EXPECT_EQ(status.ok(), good) << line << status;
    EXPECT_EQ(ran, good);
    if (good) continue;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--name \"\\xff\": it is not UTF-8"));
  }
}

}  // namespace
}  // namespace still::cli
