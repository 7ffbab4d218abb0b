// The texts of a manifest. protobuf parses no message with a text that is no UTF-8, so one file name in Latin-1 makes a
// snapshot unreadable: such texts are escaped (base/names.h) before they are stored, and where an older version stored them,
// they are escaped when they are read.
#pragma once

#include "absl/strings/string_view.h"
#include "proto/manifest.pb.h"

namespace still::store {

// Escapes every text in the message, at any depth, that is no UTF-8.
void EscapeTexts(google::protobuf::Message& message);

// A serialized manifest, in which texts may be any bytes. False: it is none.
bool ParseManifestTexts(absl::string_view payload, stillpoint::manifest::v1::Snapshot& snapshot);

}  // namespace still::store
