#include "store/lock/lease_record.h"

#include <limits>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace still::store {
namespace {

constexpr size_t kMaxHostLength = 320;  // Machine id (32), ':', host name (64 on Linux), with room.
constexpr size_t kMaxBootLength = 64;

bool Printable(absl::string_view text) {
  for (char c : text) {
    if (!absl::ascii_isprint(static_cast<unsigned char>(c))) return false;
  }
  return true;
}

std::string Cleaned(absl::string_view text, size_t limit) {
  std::string cleaned(text.substr(0, limit));
  for (char& c : cleaned) {
    if (!absl::ascii_isprint(static_cast<unsigned char>(c))) c = '?';
  }
  return cleaned;
}

// Takes lines of a lease one by one, in order.
class LineReader {
 public:
  explicit LineReader(absl::string_view text) : lines_(absl::StrSplit(text, '\n')) {}
  // The value of the next line, which must have this key.
  bool Text(absl::string_view key, size_t limit, std::string* value) {
    if (next_ == lines_.size()) return false;
    absl::string_view line = lines_[next_++];
    if (line.substr(0, key.size()) != key || line.substr(key.size(), 1) != " ") return false;
    *value = std::string(line.substr(key.size() + 1));
    return value->size() <= limit && Printable(*value);
  }
  // Decimal digits only: SimpleAtoi alone would take signs and spaces too.
  bool Number(absl::string_view key, uint64_t limit, uint64_t* value) {
    std::string text;
    if (!Text(key, 20, &text) || text.empty()) return false;
    for (char c : text) {
      if (!absl::ascii_isdigit(static_cast<unsigned char>(c))) return false;
    }
    return absl::SimpleAtoi(text, value) && *value <= limit;
  }
  // After the last line end there is nothing.
  bool AtEnd() const { return next_ + 1 == lines_.size() && lines_[next_].empty(); }

 private:
  const std::vector<absl::string_view> lines_;
  size_t next_ = 0;
};

}  // namespace

std::string EncodeLease(const LeaseRecord& record) {
  return absl::StrCat(
      "stillpoint-lease 1\n", "kind ", record.kind == LeaseKind::kShared ? "shared" : "exclusive", "\npurpose ",
      Cleaned(record.purpose, kMaxPurposeLength), "\nhost ", Cleaned(record.holder.host, kMaxHostLength), "\nboot ",
      Cleaned(record.holder.boot, kMaxBootLength), "\npidns ", record.holder.pid_namespace, "\npid ", record.holder.pid,
      "\nstart ", record.holder.start_ticks, "\nterm_ms ", absl::ToInt64Milliseconds(record.term), "\nrenewals ",
      absl::Dec(record.renewals, absl::kZeroPad10), "\n");
}

absl::StatusOr<LeaseRecord> ParseLease(absl::string_view text) {
  constexpr uint64_t kAny = std::numeric_limits<uint64_t>::max();
  LeaseRecord record;
  LineReader reader(text.size() <= kMaxLeaseBytes ? text : "");
  std::string version;
  std::string kind;
  uint64_t pid = 0;
  uint64_t term_ms = 0;
  bool good = reader.Text("stillpoint-lease", 8, &version) && version == "1" && reader.Text("kind", 16, &kind) &&
              (kind == "shared" || kind == "exclusive") && reader.Text("purpose", kMaxPurposeLength, &record.purpose) &&
              reader.Text("host", kMaxHostLength, &record.holder.host) &&
              reader.Text("boot", kMaxBootLength, &record.holder.boot) &&
              reader.Number("pidns", kAny, &record.holder.pid_namespace) &&
              reader.Number("pid", std::numeric_limits<int32_t>::max(), &pid) &&
              reader.Number("start", kAny, &record.holder.start_ticks) &&
              reader.Number("term_ms", static_cast<uint64_t>(absl::ToInt64Milliseconds(kMaxLeaseTerm)), &term_ms) &&
              reader.Number("renewals", kAny, &record.renewals) && reader.AtEnd();
  record.kind = kind == "shared" ? LeaseKind::kShared : LeaseKind::kExclusive;
  record.holder.pid = static_cast<int64_t>(pid);
  record.term = absl::Milliseconds(static_cast<int64_t>(term_ms));
  if (!good || record.term < kMinLeaseTerm) return absl::DataLossError("lease: not in a form that this version knows");
  return record;
}

}  // namespace still::store
