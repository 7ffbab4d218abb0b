#include "session/hypervisor/memory_stream.h"

#include "absl/strings/str_cat.h"
#include "session/hypervisor/qemu/migration_stream.h"

namespace still::session {
namespace {

class FunctionSource final : public MigrationStreamSource {
 public:
  explicit FunctionSource(const ByteSource& source) : source_(source) {}
  absl::StatusOr<size_t> Read(char* out, size_t size) override { return source_(out, size); }

 private:
  const ByteSource& source_;
};

}  // namespace

absl::Status SplitMemoryStream(absl::string_view format, const ByteSource& source, MemoryStreamReceiver& receiver) {
  if (format != "qemu-migration-3") {
    return absl::InvalidArgumentError(absl::StrCat("memory stream format \"", format, "\" is not known here"));
  }
  FunctionSource qemu_source(source);
  return SplitMigrationStream(qemu_source, MigrationStreamOptions{}, receiver).status();
}

}  // namespace still::session
