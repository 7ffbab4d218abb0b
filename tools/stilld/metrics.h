// Metrics: what Prometheus reads. docs/operations.md lists them; tools/stilld/alerts.yml and dashboard.json use them.
// Counters and histograms count what ended since the start of this process, as Prometheus expects. Not thread-safe.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <set>
#include <string>

#include "tools/stilld/figures.h"

namespace still::daemon {

class Metrics {
 public:
  Metrics();
  // Counts what has ended since the last call, and gives everything in the text format.
  std::string Render(const Figures& figures);

 private:
  void Count(const store::RunRow& run);

  prometheus::Registry registry_;
  prometheus::Family<prometheus::Counter>& runs_;
  prometheus::Family<prometheus::Counter>& stored_;
  prometheus::Family<prometheus::Histogram>& duration_;
  prometheus::Family<prometheus::Histogram>& freeze_;
  prometheus::Family<prometheus::Histogram>& pause_;
  bool begun_ = false;
  int64_t newest_seen_ = 0;
  std::set<int64_t> open_;  // Seen and not ended.
};

}  // namespace still::daemon
