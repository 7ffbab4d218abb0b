// What the agent reads in the guest (mount points, host names, what hooks print) are bytes; what it answers are texts in
// protobuf's sense, and a message with a text that is no UTF-8 cannot be read by anybody.
#pragma once

#include "google/protobuf/message.h"

namespace still::agent {

// Escapes, in each text of the message and of those in it, what is no harmless UTF-8 (base/clean_text.h). To be called on
// every answer before it is sent.
void MakeTextsValid(google::protobuf::Message& message);

}  // namespace still::agent
