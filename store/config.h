// The repository's `config` object (docs/format/repository.md, "Config").
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "store/block/compression.h"
#include "store/crypto/secret.h"

namespace still::store {

inline constexpr char kConfigObject[] = "config";
inline constexpr uint16_t kFormatVersion = 1;

struct RepositoryConfig {
  bool encrypted = false;
  Compression compression = Compression::kDefault;
  absl::Time created;
  std::string id;         // 16 bytes.
  SecretBytes id_secret;  // 32 bytes when not encrypted, else empty.

  std::string hex_id() const;
};

std::string EncodeConfig(const RepositoryConfig& config);
// FAILED_PRECONDITION: of a newer format. DATA_LOSS: damaged.
absl::StatusOr<RepositoryConfig> ParseConfig(absl::string_view object);

}  // namespace still::store
