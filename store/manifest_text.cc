#include "store/manifest_text.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/stubs/logging.h>

#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/names.h"

namespace still::store {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using stillpoint::manifest::v1::Snapshot;

void EscapeField(const FieldDescriptor& field, Message& message) {
  const Reflection& reflection = *message.GetReflection();
  const int count = field.is_repeated() ? reflection.FieldSize(message, &field) : 1;
  for (int i = 0; i < count; ++i) {
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      EscapeTexts(field.is_repeated() ? *reflection.MutableRepeatedMessage(&message, &field, i)
                                      : *reflection.MutableMessage(&message, &field));
      continue;
    }
    const std::string text =
        field.is_repeated() ? reflection.GetRepeatedString(message, &field, i) : reflection.GetString(message, &field);
    if (IsUtf8(text)) continue;
    if (field.is_repeated()) {
      reflection.SetRepeatedString(&message, &field, i, EscapeName(text));
    } else {
      reflection.SetString(&message, &field, EscapeName(text));
    }
  }
}

// The manifest as proto2 would have it: the same bytes, and its texts are not looked at.
const Message& LenientSnapshot() {
  static const Message* lenient = [] {
    google::protobuf::FileDescriptorProto file;
    Snapshot::descriptor()->file()->CopyTo(&file);
    file.set_syntax("proto2");
    auto* pool = new google::protobuf::DescriptorPool;
    STILL_CHECK(pool->BuildFile(file) != nullptr);
    auto* factory = new google::protobuf::DynamicMessageFactory(pool);
    return factory->GetPrototype(pool->FindMessageTypeByName(Snapshot::descriptor()->full_name()));
  }();
  return *lenient;
}

}  // namespace

void EscapeTexts(Message& message) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool text = field->type() == FieldDescriptor::TYPE_STRING;
    if (text || field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) EscapeField(*field, message);
  }
}

bool ParseManifestTexts(absl::string_view payload, Snapshot& snapshot) {
  const auto size = static_cast<int>(payload.size());  // At most MaxPlainSize().
  // It would complain on standard error, of what is mended here or told by the caller.
  google::protobuf::LogSilencer quiet;
  if (snapshot.ParseFromArray(payload.data(), size)) return true;
  std::unique_ptr<Message> lenient(LenientSnapshot().New());
  if (!lenient->ParseFromArray(payload.data(), size)) return false;
  EscapeTexts(*lenient);
  return snapshot.ParseFromString(lenient->SerializeAsString());
}

}  // namespace still::store
