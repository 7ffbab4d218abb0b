#include "session/hypervisor/qemu/qemu_cpu.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/hypervisor/host_cpu.h"
#include "tests/unit/session-qemu/fake_qmp_server.h"

namespace still::session {
namespace {

TEST(QemuCpu, AModelIsAskedForAsItStandsOnTheCommandLine) {
  EXPECT_EQ(CpuModelArguments("host").dump(), R"({"model":{"name":"host","props":{}},"type":"static"})");
  EXPECT_EQ(CpuModelArguments("EPYC-v3,-avx2,+pcid,migratable=off,level=13,pmu,vendor=AuthenticAMD")["model"].dump(),
            R"({"name":"EPYC-v3","props":{"avx2":false,"level":13,"migratable":false,"pcid":true,"pmu":true,)"
            R"("vendor":"AuthenticAMD"}})");
}

// Without the counter's frequency in the manifest, a restore has nothing to compare.
TEST(QemuCpu, AGuestsCounterIsThatOfItsFirstProcessor) {
  testing::FakeQmpServer server([](const nlohmann::json& command) -> std::vector<std::string> {
    const std::string name = command["execute"];
    if (name == "query-cpu-model-expansion") {
      return {R"({"return": {"model": {"name": "base", "props": {"avx2": true, "svm": false}}}, "id": @ID})"};
    }
    if (name == "query-cpus-fast") {
      return {
          R"({"return": [{"cpu-index": 0, "qom-path": "/machine/cpu0"}, {"cpu-index": 1, "qom-path": "/x"}], "id": @ID})"};
    }
    const bool asked = name == "qom-get" && command["arguments"]["path"] == "/machine/cpu0" &&
                       command["arguments"]["property"] == "tsc-frequency";
    return {asked ? R"({"return": 2899998000, "id": @ID})" : R"({"return": {}, "id": @ID})"};
  });
  auto qmp = QmpClient::Connect(server.TakeClient(), {});
  ASSERT_TRUE(qmp.ok()) << qmp.status();
  auto cpu = QueryGuestCpu(**qmp, "host");
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  EXPECT_EQ(cpu->tsc_hz, 2'899'998'000u);
  EXPECT_THAT(cpu->features, ::testing::ElementsAre("avx2"));
}

TEST(HostCpu, KernelAndQemuSpellOneFeatureInDifferentWays) {
  EXPECT_EQ(CpuWord("sse4_2"), CpuWord("sse4.2"));
  EXPECT_EQ(CpuWord("avx512_bitalg"), CpuWord("avx512bitalg"));
  EXPECT_NE(CpuWord("sse4_1"), CpuWord("sse4_2"));
}

}  // namespace
}  // namespace still::session
