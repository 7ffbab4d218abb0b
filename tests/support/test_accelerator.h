// What the guests of tests run under: STILL_TEST_ACCELERATOR ("kvm", "tcg"), else what this host can do.
#pragma once

#include <cstdlib>
#include <string>

#include "base/check.h"
#include "session/hypervisor/accelerator.h"

namespace still::testing {

inline std::string TestAccelerator() {
  const char* wanted = std::getenv("STILL_TEST_ACCELERATOR");
  const auto chosen = session::ChooseAccelerator(wanted == nullptr ? "" : wanted);
  STILL_CHECK(chosen.ok());
  return chosen->name;
}

}  // namespace still::testing
