// Fallible functions return absl::Status or absl::StatusOr. The code says what the caller can do next:
//   INVALID_ARGUMENT     the request can never work; mend it          NOT_FOUND / ALREADY_EXISTS  another name
//   FAILED_PRECONDITION  change the state of the system first         UNAVAILABLE                 try again later
//   RESOURCE_EXHAUSTED   make room (disk, memory, slots)              DEADLINE_EXCEEDED           it took too long
//   PERMISSION_DENIED    other rights are needed                      ABORTED                     given up on purpose
//   DATA_LOSS            stored bytes are not what was stored         INTERNAL                    our bug, or the
//   kernel's
// The message names object, operation and errno. Context is added once, where a folder is left (Annotate).
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace still {

// The status for a failed system call: "open /x: No such file or directory", with the code that errno stands for
// (ENOSPC, EDQUOT, EMFILE... -> RESOURCE_EXHAUSTED; EAGAIN, ECONNREFUSED... -> UNAVAILABLE; EIO -> DATA_LOSS).
absl::Status ErrnoStatus(int error_number, absl::string_view operation);

// "context: message", same code and payloads. OK stays OK.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

// The process exit code for a status; docs/operations.md lists them. 0 for OK.
int ExitCode(const absl::Status& status);

// The first error of the two; both messages are kept when both failed.
absl::Status FirstError(absl::Status first, const absl::Status& second);

}  // namespace still

#define STILL_CONCAT_INNER(a, b) a##b
#define STILL_CONCAT(a, b) STILL_CONCAT_INNER(a, b)

// Returns from the enclosing function when `expression` is not OK.
#define STILL_RETURN_IF_ERROR(expression)                               \
  do {                                                                  \
    if (absl::Status still_status = (expression); !still_status.ok()) { \
      return still_status;                                              \
    }                                                                   \
  } while (false)

// STILL_ASSIGN_OR_RETURN(auto x, F()): declares or assigns x from a StatusOr, or returns its error.
#define STILL_ASSIGN_OR_RETURN(target, expression) \
  STILL_ASSIGN_OR_RETURN_INNER(STILL_CONCAT(still_statusor_, __LINE__), target, expression)
#define STILL_ASSIGN_OR_RETURN_INNER(statusor, target, expression) \
  auto statusor = (expression);                                    \
  if (!statusor.ok()) return std::move(statusor).status();         \
  target = *std::move(statusor)
