#include "session/control/describe_all.h"

#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/grpc_status.h"

namespace still::session {
namespace {

using Reader = grpc::ClientAsyncResponseReader<sessionpb::DescribeResponse>;

struct Call {
  std::unique_ptr<sessionpb::SessionControl::Stub> stub;
  grpc::ClientContext context;
  std::unique_ptr<Reader> reader;
  sessionpb::DescribeResponse response;
  grpc::Status status;
};

}  // namespace

std::vector<absl::StatusOr<sessionpb::DescribeResponse>> DescribeAll(const SessionRegistry& sessions,
                                                                     const std::vector<std::string>& names,
                                                                     absl::Duration timeout) {
  std::vector<absl::StatusOr<sessionpb::DescribeResponse>> answers(names.size(), absl::UnavailableError("not asked"));
  const auto deadline = absl::ToChronoTime(absl::Now() + timeout);
  std::vector<std::unique_ptr<Call>> calls(names.size());
  grpc::CompletionQueue queue;
  size_t open = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    auto stub = sessions.Connect(names[i]);
    if (!stub.ok()) {
      answers[i] = stub.status();
      continue;
    }
    calls[i] = std::make_unique<Call>();
    calls[i]->stub = *std::move(stub);
    calls[i]->context.set_deadline(deadline);
    calls[i]->reader = calls[i]->stub->AsyncDescribe(&calls[i]->context, {}, &queue);
    calls[i]->reader->Finish(&calls[i]->response, &calls[i]->status, reinterpret_cast<void*>(i));
    ++open;
  }
  // Each call comes back, at the latest when its deadline has passed.
  void* tag = nullptr;
  bool ok = false;
  for (; open > 0 && queue.Next(&tag, &ok); --open) {
    const auto i = reinterpret_cast<size_t>(tag);
    if (calls[i]->status.ok()) {
      answers[i] = std::move(calls[i]->response);
    } else {
      answers[i] = FromGrpc(calls[i]->status);
    }
  }
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  return answers;
}

}  // namespace still::session
