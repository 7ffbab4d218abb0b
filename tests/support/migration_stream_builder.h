// Builds memory streams as QEMU 7.2 writes them, record by record, also broken ones.
//
//   MigrationStreamBuilder stream;
//   stream.Header().StartRam({{"pc.ram", 1 << 20}}).EndSection().Part().Page("pc.ram", 0, page).EndSection()
//       .Device("timer", "...").Finish();
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace still::testing {

class MigrationStreamBuilder {
 public:
  static constexpr uint32_t kRamSection = 2;

  MigrationStreamBuilder& Header(absl::string_view machine = "pc-q35-7.2");
  // Behind the header: the reader must have this capability. Blocks are then listed with their addresses.
  MigrationStreamBuilder& Capability(const std::string& name);
  // Opens the ram section and lists its blocks.
  MigrationStreamBuilder& StartRam(const std::vector<std::pair<std::string, uint64_t>>& blocks);
  MigrationStreamBuilder& Part();
  MigrationStreamBuilder& End();
  // `content` is a page of 4096 bytes.
  MigrationStreamBuilder& Page(const std::string& block, uint64_t address, absl::string_view content);
  MigrationStreamBuilder& Zero(const std::string& block, uint64_t address, char fill = 0);
  // End mark and footer.
  MigrationStreamBuilder& EndSection();
  MigrationStreamBuilder& Device(const std::string& name, absl::string_view content);
  // End of sections and the description.
  MigrationStreamBuilder& Finish();

  MigrationStreamBuilder& Raw(absl::string_view bytes);
  MigrationStreamBuilder& U8(uint8_t value);
  MigrationStreamBuilder& U16(uint16_t value);
  MigrationStreamBuilder& U32(uint32_t value);
  MigrationStreamBuilder& U64(uint64_t value);
  MigrationStreamBuilder& Name(const std::string& name);

  const std::string& bytes() const { return bytes_; }

 private:
  void RecordHeader(const std::string& block, uint64_t address, uint64_t kind);

  std::string bytes_;
  std::string last_block_;
  bool addresses_ = false;
};

}  // namespace still::testing
