#include "guest-agent/valid_texts.h"

#include <string>
#include <utility>
#include <vector>

#include "base/clean_text.h"

namespace still::agent {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// As long as a path can be.
constexpr size_t kMaxText = 4096;

}  // namespace

void MakeTextsValid(Message& message) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool text = field->type() == FieldDescriptor::TYPE_STRING;
    if (!text && field->type() != FieldDescriptor::TYPE_MESSAGE) continue;
    if (field->is_repeated()) {
      for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
        if (text) {
          std::string clean = CleanText(reflection.GetRepeatedString(message, field, i), kMaxText);
          reflection.SetRepeatedString(&message, field, i, std::move(clean));
        } else {
          MakeTextsValid(*reflection.MutableRepeatedMessage(&message, field, i));
        }
      }
    } else if (text) {
      reflection.SetString(&message, field, CleanText(reflection.GetString(message, field), kMaxText));
    } else {
      MakeTextsValid(*reflection.MutableMessage(&message, field));
    }
  }
}

}  // namespace still::agent
