#include "tests/guest/lies.h"

#include <cstdint>

#include "absl/strings/str_cat.h"

namespace still::testing {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string Lie() {
  return absl::StrCat("\x1b]0;owned\x07\n2026-01-01T00:00:00Z I forged\xff\xfe\xe2\x80\xae", std::string(100'000, 'x'));
}

void LieInEveryField(Message& answer) {
  const google::protobuf::Reflection& reflection = *answer.GetReflection();
  for (int i = 0; i < answer.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = answer.GetDescriptor()->field(i);
    if (field->type() == FieldDescriptor::TYPE_STRING) {
      if (field->is_repeated()) {
        reflection.AddString(&answer, field, Lie());
      } else {
        reflection.SetString(&answer, field, Lie());
      }
    } else if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
      LieInEveryField(field->is_repeated() ? *reflection.AddMessage(&answer, field)
                                           : *reflection.MutableMessage(&answer, field));
    } else if (field->type() == FieldDescriptor::TYPE_ENUM && !field->is_repeated()) {
      reflection.SetEnumValue(&answer, field, 77);
    } else if (field->type() == FieldDescriptor::TYPE_UINT64) {
      reflection.SetUInt64(&answer, field, UINT64_MAX);
    }
  }
}

}  // namespace still::testing
