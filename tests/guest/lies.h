// What a guest may say: see tests/unit/session/lying_agent_test.cc and tests/e2e/lying_test.py.
#pragma once

#include <string>

#include "google/protobuf/message.h"

namespace still::testing {

// An escape sequence, a forged line, what is no UTF-8, a change of direction, and more than anybody reads.
std::string Lie();
// Fills every text, and puts one element into every list.
void LieInEveryField(google::protobuf::Message& answer);

}  // namespace still::testing
