// The one door for what a guest says: nothing of it is logged, stored, sent on or printed that has not passed here.
// GuestClient puts every answer of an agent through ReadAnswer and every error through CleanWords, so that nobody behind
// it has to think of it; the QEMU guest agent's answers and the console's last line pass CleanWords.
//
// Not cleaned is what a program that the host started in the guest prints (`still exec`): its bytes are its caller's.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "google/protobuf/message.h"

namespace still::session {

// One text: as long as Linux lets a path be (PATH_MAX), which is the longest thing that an honest agent tells.
inline constexpr size_t kMaxGuestText = 4096;
// One name, such as a host name or a version; one sentence in an error.
inline constexpr size_t kMaxGuestName = 256;
inline constexpr size_t kMaxGuestSentence = 1024;
// Texts and parts in one answer: the mounts of a host of many containers, many times over.
inline constexpr size_t kMaxGuestElements = 65'536;
// One answer, before and after it was cleaned; half of what gRPC carries by default, as it is sent on inside of others.
inline constexpr size_t kMaxGuestAnswer = 2 << 20;

// See base/clean_text.h.
std::string CleanWords(absl::string_view text, size_t limit = kMaxGuestSentence);

// Parses the bytes of an answer into `out`: each text is cleaned and cut to `text_limit`, which also saves answers with
// texts that are no UTF-8 (protobuf refuses those as a whole); fields that we do not know are dropped. Takes memory in
// proportion to the limits, whatever the bytes say. RESOURCE_EXHAUSTED: beyond a limit. Lists are never cut: what was
// left out could be what matters. DATA_LOSS: no such message.
absl::Status ReadAnswer(absl::string_view bytes, google::protobuf::Message& out, size_t text_limit = kMaxGuestText);

}  // namespace still::session
