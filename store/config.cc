#include "store/config.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "store/block/bytes.h"
#include "store/block/frame.h"

namespace still::store {
namespace {

constexpr size_t kConfigSize = 64;
constexpr size_t kIdSize = 16;
constexpr size_t kIdSecretSize = 32;

// One that a newer version of this program knows only says how that would store: no reason to refuse.
Compression CompressionOf(uint8_t stored) {
  return stored <= static_cast<uint8_t>(Compression::kSmall) ? static_cast<Compression>(stored) : Compression::kDefault;
}

}  // namespace

std::string RepositoryConfig::hex_id() const { return absl::BytesToHexString(id); }

std::string EncodeConfig(const RepositoryConfig& config) {
  STILL_CHECK(config.id.size() == kIdSize && config.id_secret.size() == (config.encrypted ? 0 : kIdSecretSize));
  std::string payload;
  AppendInt<uint16_t>(payload, kFormatVersion);
  payload.push_back(config.encrypted ? 1 : 0);
  payload.push_back(static_cast<char>(config.compression));
  payload.append(4, '\0');
  AppendInt<int64_t>(payload, absl::ToUnixNanos(config.created));
  payload += config.id;
  payload.append(config.id_secret.view().data(), config.id_secret.size());
  payload.resize(kConfigSize);
  std::string object;
  FrameCodec().Encode(FrameKind::kConfig, {}, false, payload, object);
  return object;
}

absl::StatusOr<RepositoryConfig> ParseConfig(absl::string_view object) {
  STILL_ASSIGN_OR_RETURN(std::string payload, FrameCodec().Decode(FrameKind::kConfig, {}, object));
  ByteReader reader(payload);
  const auto version = reader.Int<uint16_t>();
  if (reader.ok() && version > kFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat("repository has format ", version, ", this program knows up to ",
                                                      kFormatVersion, ": use a newer version"));
  }
  const auto encrypted = reader.Int<uint8_t>();
  const auto compression = reader.Int<uint8_t>();
  reader.Bytes(4);
  RepositoryConfig config = {.encrypted = encrypted != 0,
                             .compression = CompressionOf(compression),
                             .created = absl::FromUnixNanos(reader.Int<int64_t>())};
  config.id = std::string(reader.Bytes(kIdSize));
  absl::string_view secret = reader.Bytes(kIdSecretSize);
  if (!reader.AtEnd() || version != kFormatVersion || encrypted > 1) {
    return absl::DataLossError("config: impossible content");
  }
  if (!config.encrypted) config.id_secret = SecretBytes::Copy(secret);
  return config;
}

}  // namespace still::store
