#include "tests/support/migration_stream_builder.h"

namespace still::testing {

MigrationStreamBuilder& MigrationStreamBuilder::Raw(absl::string_view bytes) {
  bytes_.append(bytes.data(), bytes.size());
  return *this;
}

MigrationStreamBuilder& MigrationStreamBuilder::U8(uint8_t value) {
  bytes_.push_back(static_cast<char>(value));
  return *this;
}

MigrationStreamBuilder& MigrationStreamBuilder::U16(uint16_t value) {
  return U8(static_cast<uint8_t>(value >> 8)).U8(static_cast<uint8_t>(value));
}

MigrationStreamBuilder& MigrationStreamBuilder::U32(uint32_t value) {
  return U16(static_cast<uint16_t>(value >> 16)).U16(static_cast<uint16_t>(value));
}

MigrationStreamBuilder& MigrationStreamBuilder::U64(uint64_t value) {
  return U32(static_cast<uint32_t>(value >> 32)).U32(static_cast<uint32_t>(value));
}

MigrationStreamBuilder& MigrationStreamBuilder::Name(const std::string& name) {
  return U8(static_cast<uint8_t>(name.size())).Raw(name);
}

MigrationStreamBuilder& MigrationStreamBuilder::Header(absl::string_view machine) {
  return Raw("QEVM").U32(3).U8(0x07).U32(static_cast<uint32_t>(machine.size())).Raw(machine);
}

MigrationStreamBuilder& MigrationStreamBuilder::Capability(const std::string& name) {
  addresses_ = true;
  return U8(0x05).Name("configuration/capabilities").U32(1).U32(1).Name(name);
}

MigrationStreamBuilder& MigrationStreamBuilder::StartRam(const std::vector<std::pair<std::string, uint64_t>>& blocks) {
  U8(0x01).U32(kRamSection).Name("ram").U32(0).U32(4);
  uint64_t total = 0;
  for (const auto& [name, size] : blocks) total += size;
  U64(total | 0x04);
  for (const auto& [name, size] : blocks) {
    Name(name).U64(size);
    if (addresses_) U64(0xfffc0000);
  }
  return *this;
}

MigrationStreamBuilder& MigrationStreamBuilder::Part() { return U8(0x02).U32(kRamSection); }

MigrationStreamBuilder& MigrationStreamBuilder::End() { return U8(0x03).U32(kRamSection); }

void MigrationStreamBuilder::RecordHeader(const std::string& block, uint64_t address, uint64_t kind) {
  if (block == last_block_) {
    U64(address | kind | 0x20);
  } else {
    U64(address | kind).Name(block);
    last_block_ = block;
  }
}

MigrationStreamBuilder& MigrationStreamBuilder::Page(const std::string& block, uint64_t address,
                                                     absl::string_view content) {
  RecordHeader(block, address, 0x08);
  return Raw(content);
}

MigrationStreamBuilder& MigrationStreamBuilder::Zero(const std::string& block, uint64_t address, char fill) {
  RecordHeader(block, address, 0x02);
  return U8(static_cast<uint8_t>(fill));
}

MigrationStreamBuilder& MigrationStreamBuilder::EndSection() { return U64(0x10).U8(0x7e).U32(kRamSection); }

MigrationStreamBuilder& MigrationStreamBuilder::Device(const std::string& name, absl::string_view content) {
  return U8(0x04).U32(7).Name(name).U32(0).U32(1).Raw(content).U8(0x7e).U32(7);
}

MigrationStreamBuilder& MigrationStreamBuilder::Finish() {
  constexpr absl::string_view kDescription = R"({"page_size": 4096, "devices": []})";
  return U8(0x00).U8(0x06).U32(kDescription.size()).Raw(kDescription);
}

}  // namespace still::testing
