// The status page: one HTML page with SVG charts made here, no scripts, nothing loaded from anywhere. Pure.
//
// Everything that is shown may come from a guest or from whoever names sessions: all text is escaped.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "tools/stilld/figures.h"

namespace still::daemon {

std::string RenderStatusPage(const Figures& figures);
// For text and attributes in quotes; control characters become spaces.
std::string EscapeHtml(absl::string_view text);
// Circles on one line for each session, by time; bars of the windows of the newest captures.
std::string TimelineSvg(const Figures& figures);
std::string WindowsSvg(const Figures& figures);

}  // namespace still::daemon
