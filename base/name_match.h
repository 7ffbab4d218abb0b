// What somebody meant who typed a name in part, or wrong.
//
//   ResolveName("session", "we", {"db", "web"})      -> "web"
//   ResolveName("session", "wbe", {"db", "web"})     -> NOT_FOUND: no session "wbe"; did you mean "web"?
//
// Pure functions. Names may hold anything: they are escaped in messages.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/status.h"

namespace still {

// In quotes, with everything escaped that is not printable.
std::string Quoted(absl::string_view text);

// The name with the fewest letters to add, drop, change or swap to get there; empty when that would be more than a
// third of the typed ones (but one is always near enough, if there are two to recognise it by).
std::string NearestName(absl::string_view typed, absl::Span<const std::string> names);
// "; did you mean \"web\"?", or empty.
std::string DidYouMean(absl::string_view typed, absl::Span<const std::string> names);
// "a, b and 3 more".
std::string ListSome(absl::Span<const std::string> names);

// NOT_FOUND with a suggestion, or the list of those there are. `kind` is for the message.
absl::Status NoSuchName(absl::string_view kind, absl::string_view typed, absl::Span<const std::string> names);

// The name itself if there is one, else the only one that begins with `typed`. NoSuchName();
// FAILED_PRECONDITION when several begin so, with the candidates.
absl::StatusOr<std::string> ResolveName(absl::string_view kind, absl::string_view typed,
                                        absl::Span<const std::string> names);

}  // namespace still
