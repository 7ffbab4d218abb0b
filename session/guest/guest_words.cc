#include "session/guest/guest_words.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "base/clean_text.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/wire_format_lite.h"

namespace still::session {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;

// Answers have three levels; a guest chooses how deep it nests.
constexpr int kMaxDepth = 8;

// Copies a message in wire form, field by field, and cleans the texts in it. Nothing is built of the message but its
// bytes, so that a guest cannot turn two bytes into an object.
class Cleaner {
 public:
  explicit Cleaner(size_t text_limit) : text_limit_(text_limit) {}

  absl::StatusOr<std::string> Clean(absl::string_view bytes, const Descriptor& type, int depth) {
    if (depth > kMaxDepth) return absl::DataLossError("the guest's answer is nested too deeply");
    std::string out;
    {
      StringOutputStream stream(&out);
      CodedOutputStream writer(&stream);
      CodedInputStream reader(reinterpret_cast<const uint8_t*>(bytes.data()), static_cast<int>(bytes.size()));
      while (uint32_t tag = reader.ReadTag()) STILL_RETURN_IF_ERROR(Field(tag, type, depth, reader, writer));
      if (!reader.ConsumedEntireMessage()) return Broken();
    }
    if (out.size() > kMaxGuestAnswer) return TooLong();
    return out;
  }

 private:
  static absl::Status Broken() { return absl::DataLossError("the guest's answer is no such message"); }
  static absl::Status TooLong() {
    return absl::ResourceExhaustedError(absl::StrCat("the guest's answer is longer than ", kMaxGuestAnswer, " bytes"));
  }

  absl::Status Field(uint32_t tag, const Descriptor& type, int depth, CodedInputStream& reader,
                     CodedOutputStream& writer) {
    const FieldDescriptor* field = type.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
    const WireFormatLite::WireType wire = WireFormatLite::GetTagWireType(tag);
    if (wire != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      const bool drop = field == nullptr || wire == WireFormatLite::WIRETYPE_START_GROUP;
      const bool copied =
          drop ? WireFormatLite::SkipField(&reader, tag) : WireFormatLite::SkipField(&reader, tag, &writer);
      return copied ? absl::OkStatus() : Broken();
    }
    uint32_t size = 0;
    std::string data;
    if (!reader.ReadVarint32(&size) || size > kMaxGuestAnswer || !reader.ReadString(&data, static_cast<int>(size))) {
      return Broken();
    }
    if (field == nullptr) return absl::OkStatus();
    if (++elements_ > kMaxGuestElements) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the guest's answer has more than ", kMaxGuestElements, " parts"));
    }
    if (field->type() == FieldDescriptor::TYPE_STRING) {
      data = CleanText(data, text_limit_);
    } else if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
      STILL_ASSIGN_OR_RETURN(data, Clean(data, *field->message_type(), depth + 1));
    }
    writer.WriteTag(tag);
    writer.WriteVarint32(static_cast<uint32_t>(data.size()));
    writer.WriteString(data);
    return absl::OkStatus();
  }

  const size_t text_limit_;
  size_t elements_ = 0;
};

}  // namespace

std::string CleanWords(absl::string_view text, size_t limit) { return CleanText(text, limit); }

absl::Status ReadAnswer(absl::string_view bytes, google::protobuf::Message& out, size_t text_limit) {
  if (bytes.size() > kMaxGuestAnswer) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the guest's answer has ", bytes.size(), " bytes; at most ", kMaxGuestAnswer, " are taken"));
  }
  Cleaner cleaner(text_limit);
  STILL_ASSIGN_OR_RETURN(std::string clean, cleaner.Clean(bytes, *out.GetDescriptor(), /*depth=*/0));
  if (!out.ParseFromString(clean)) return absl::DataLossError("the guest's answer is no such message");
  return absl::OkStatus();
}

}  // namespace still::session
