// What commands take in the same way, and what they answer in the same way.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/manifest.pb.h"
#include "tools/still/choose.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/each_session.h"
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

TEST(FitsOnHostTest, APatternMeansThisHostUnlessAnotherIsNamed) {
  std::vector<manifestpb::Snapshot> snapshots(4);
  const auto fill = [&](size_t i, const char* session, const char* host, const char* id) {
    snapshots[i].set_session(session);
    snapshots[i].set_host(host);
    snapshots[i].set_host_id(id);
  };
  fill(0, "web", "alpha", "aaaa1111");
  fill(1, "web", "beta", "bbbb2222");
  fill(2, "web-2", "beta", "cccc3333");
  fill(3, "db", "beta", "bbbb2222");
  const HostIdentity here = {.id = "aaaa1111", .name = "alpha"};
  const auto fits = [&](const std::string& word) {
    return FitsOnHost(
        snapshots, word, [](const manifestpb::Snapshot& one) -> const std::string& { return one.session(); }, here);
  };
  EXPECT_THAT(*fits("web"), ElementsAre(0));
  EXPECT_THAT(*fits("*"), ElementsAre(0));
  EXPECT_THAT(*fits("beta/web"), ElementsAre(1));
  EXPECT_THAT(*fits("bbbb/*"), ElementsAre(1, 3));
  EXPECT_THAT(*fits("*/web*"), ElementsAre(0, 1, 2));
  EXPECT_EQ(fits("beta/web*").status().code(), absl::StatusCode::kFailedPrecondition) << "two hosts are called so";
  EXPECT_EQ(fits("gamma/web").status().code(), absl::StatusCode::kNotFound);
  const absl::Status elsewhere = fits("db").status();
  EXPECT_EQ(elsewhere.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(elsewhere.message(), HasSubstr("write HOST/db: beta (bbbb2222)"));
}

TEST(NewestOfSessionsTest, IsOneOfEachMachineThatThePatternMeans) {
  std::vector<manifestpb::Snapshot> snapshots(5);
  const auto fill = [&](size_t i, const char* id, const char* session, const char* host) {
    snapshots[i].set_id(id);
    snapshots[i].set_session(session);
    snapshots[i].set_host(host);
    snapshots[i].set_host_id(host);
  };
  fill(0, "old", "web-2", "alpha");
  fill(1, "first", "web-1", "alpha");
  fill(2, "theirs", "web-1", "beta");
  fill(3, "new", "web-2", "alpha");
  fill(4, "other", "db", "alpha");
  const HostIdentity here = {.id = "alpha", .name = "alpha"};
  EXPECT_THAT(*NewestOfSessions(snapshots, "web-*", here), ElementsAre("first", "new"));
  EXPECT_THAT(*NewestOfSessions(snapshots, "*/web-*", here), ElementsAre("first", "new", "theirs"));
  EXPECT_EQ(NewestOfSessions(snapshots, "x*", here).status().code(), absl::StatusCode::kNotFound);
}

TEST(WorstErrorTest, TellsAllAndEndsWithTheHighestExitCode) {
  absl::Status all = WorstError(absl::OkStatus(), absl::OkStatus());
  EXPECT_TRUE(all.ok());
  all = WorstError(all, absl::NotFoundError("a: gone"));
  all = WorstError(all, absl::DataLossError("b: damaged"));
  all = WorstError(all, absl::OkStatus());
  all = WorstError(all, absl::UnavailableError("c: busy"));
  EXPECT_EQ(all, absl::DataLossError("a: gone; b: damaged; c: busy"));
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
