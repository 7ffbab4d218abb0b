#include "session/hypervisor/qemu/qemu_cpu.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/hypervisor/host_cpu.h"

namespace still::session {
namespace {

TEST(QemuCpu, AModelIsAskedForAsItStandsOnTheCommandLine) {
  EXPECT_EQ(CpuModelArguments("host").dump(), R"({"model":{"name":"host","props":{}},"type":"static"})");
  EXPECT_EQ(CpuModelArguments("EPYC-v3,-avx2,+pcid,migratable=off,level=13,pmu,vendor=AuthenticAMD")["model"].dump(),
            R"({"name":"EPYC-v3","props":{"avx2":false,"level":13,"migratable":false,"pcid":true,"pmu":true,)"
            R"("vendor":"AuthenticAMD"}})");
}

TEST(HostCpu, KernelAndQemuSpellOneFeatureInDifferentWays) {
  EXPECT_EQ(CpuWord("sse4_2"), CpuWord("sse4.2"));
  EXPECT_EQ(CpuWord("avx512_bitalg"), CpuWord("avx512bitalg"));
  EXPECT_NE(CpuWord("sse4_1"), CpuWord("sse4_2"));
}

}  // namespace
}  // namespace still::session
