// The kernel's side of an identity, in name spaces of the test's own. (The clock has none: it is not set here.)
#include "guest-agent/identity/identity_kernel.h"

#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::agent {
namespace {

class IdentityKernelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0 || ::unshare(CLONE_NEWUTS | CLONE_NEWNET) != 0) GTEST_SKIP() << "needs root";
  }
  RealIdentityKernel kernel_;
};

TEST_F(IdentityKernelTest, TheRandomGeneratorAcknowledgesItsReseed) {
  // Whatever the length: the request's size is rounded up to words.
  for (size_t size : {32u, 33u, 34u, 35u, 1024u}) {
    absl::Status status = kernel_.MixEntropy(std::string(size, 'x'));
    EXPECT_TRUE(status.ok()) << size << ": " << status;
  }
}

TEST_F(IdentityKernelTest, TheHostNameChangesHereOnly) {
  ASSERT_TRUE(kernel_.SetHostName("still-test").ok());
  EXPECT_EQ(*kernel_.HostName(), "still-test");
  EXPECT_FALSE(kernel_.SetHostName(std::string(65, 'x')).ok());
}

TEST_F(IdentityKernelTest, AnInterfaceGetsItsNewAddressAndStaysUp) {
  OwnedFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  // An Ethernet interface without a network behind it.
  bool made = false;
  for (const char* kind : {"dummy", "veth"}) {
    auto output = RunCommand({.argv = {"ip", "link", "add", "still0", "type", kind}}, absl::Seconds(20));
    made = made || (output.ok() && output->exit.ok());
  }
  if (!made) GTEST_SKIP() << "needs ip(8) and dummy or veth interfaces";
  ifreq flags{};
  std::strcpy(flags.ifr_name, "still0");
  flags.ifr_flags = IFF_UP;
  ASSERT_EQ(::ioctl(fd.get(), SIOCSIFFLAGS, &flags), 0);
  absl::Status status = kernel_.SetMac("still0", "52:54:00:11:22:33");
  ASSERT_TRUE(status.ok()) << status;
  ifreq address{};
  std::strcpy(address.ifr_name, "still0");
  ASSERT_EQ(::ioctl(fd.get(), SIOCGIFHWADDR, &address), 0);
  EXPECT_EQ(std::string(address.ifr_hwaddr.sa_data, 6), *ParseMac("52:54:00:11:22:33"));
  ASSERT_EQ(::ioctl(fd.get(), SIOCGIFFLAGS, &flags), 0);
  EXPECT_TRUE(flags.ifr_flags & IFF_UP);
  EXPECT_FALSE(kernel_.SetMac("nowhere0", "52:54:00:11:22:33").ok());
}

}  // namespace
}  // namespace still::agent
