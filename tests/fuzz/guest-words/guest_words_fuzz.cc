// Whatever a guest answers: nothing that passes ReadAnswer has a text that is no UTF-8, controls a terminal or is longer
// than agreed, and what passed once passes again unchanged. The first byte chooses the call.
#include <cstdint>
#include <iterator>
#include <memory>
#include <vector>

#include "base/check.h"
#include "proto/aliases.h"
#include "proto/guest.pb.h"
#include "session/guest/guest_words.h"

namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

void CheckText(const std::string& text) {
  STILL_CHECK(text.size() <= still::session::kMaxGuestText);
  for (unsigned char c : text) STILL_CHECK(c >= 0x20 && c != 0x7f);
  STILL_CHECK(still::session::CleanWords(text, still::session::kMaxGuestText) == text);
}

void CheckTexts(const Message& message) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      if (field->type() == FieldDescriptor::TYPE_STRING) {
        CheckText(field->is_repeated() ? reflection.GetRepeatedString(message, field, i)
                                       : reflection.GetString(message, field));
      } else if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
        CheckTexts(field->is_repeated() ? reflection.GetRepeatedMessage(message, field, i)
                                        : reflection.GetMessage(message, field));
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace guestpb = still::guestpb;
  static const Message* const kAnswers[] = {
      &guestpb::InitResponse::default_instance(),          &guestpb::QuiesceResponse::default_instance(),
      &guestpb::ThawResponse::default_instance(),          &guestpb::QuiesceStatusResponse::default_instance(),
      &guestpb::AdoptIdentityResponse::default_instance(), &guestpb::PingResponse::default_instance()};
  if (size == 0) return 0;
  const Message& kind = *kAnswers[data[0] % std::size(kAnswers)];
  const absl::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::unique_ptr<Message> answer(kind.New());
  if (!still::session::ReadAnswer(bytes, *answer).ok()) return 0;
  CheckTexts(*answer);
  std::unique_ptr<Message> again(kind.New());
  const std::string sent_on = answer->SerializeAsString();
  STILL_CHECK(still::session::ReadAnswer(sent_on, *again).ok());
  STILL_CHECK(again->SerializeAsString() == sent_on);
  return 0;
}
