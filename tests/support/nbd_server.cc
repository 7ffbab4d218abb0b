#include "tests/support/nbd_server.h"

#include <endian.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/time/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"

namespace still::testing {
namespace {

constexpr uint64_t kOptionMagic = 0x49484156454F5054;  // "IHAVEOPT"
constexpr uint64_t kOptionReplyMagic = 0x3e889045565a9;
constexpr uint32_t kRequestMagic = 0x25609513;
constexpr uint32_t kChunkMagic = 0x668e33ef;
constexpr uint32_t kMaxOption = 1 << 16;
constexpr uint32_t kMaxRead = 32 << 20;

enum Option : uint32_t { kAbort = 2, kInfo = 6, kGo = 7, kStructured = 8, kListContexts = 9, kSetContexts = 10 };
enum Reply : uint32_t { kAck = 1, kInfoReply = 3, kContextReply = 4, kUnsupported = 0x80000001 };
enum Command : uint16_t { kRead = 0, kDisconnect = 2, kBlockStatus = 7 };
enum Chunk : uint16_t { kOffsetData = 1, kStatus = 5, kError = 0x8001 };

constexpr uint32_t kAllocationId = 1;
constexpr uint32_t kDirtyId = 2;

class Message {
 public:
  Message& U16(uint16_t v) { return Put(htobe16(v)); }
  Message& U32(uint32_t v) { return Put(htobe32(v)); }
  Message& U64(uint64_t v) { return Put(htobe64(v)); }
  Message& Raw(absl::string_view bytes) {
    bytes_.append(bytes.data(), bytes.size());
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  template <typename T>
  Message& Put(T value) {
    return Raw(absl::string_view(reinterpret_cast<const char*>(&value), sizeof value));
  }
  std::string bytes_;
};

// One client. Every step returns false when the connection is over.
class Connection {
 public:
  Connection(int fd, const std::vector<NbdExport>& exports, const std::atomic<bool>& stopping,
             const std::atomic<bool>& failing)
      : fd_(fd), exports_(exports), stopping_(stopping), failing_(failing) {}

  void Serve() {
    uint32_t client_flags;
    if (!Send(Message().Raw("NBDMAGIC").U64(kOptionMagic).U16(3)) || !Receive(&client_flags)) return;
    while (HandleOption()) {
    }
    while (export_ != nullptr && HandleRequest()) {
    }
  }

 private:
  bool Send(const Message& message) {
    absl::string_view left = message.bytes();
    while (!left.empty()) {
      ssize_t sent = ::send(fd_, left.data(), left.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      left.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  bool ReceiveBytes(void* out, size_t size) { return size == 0 || ReadExactly(fd_, out, size, "nbd").ok(); }
  bool Receive(uint16_t* v) { return ReceiveBytes(v, sizeof *v) && ((*v = be16toh(*v)), true); }
  bool Receive(uint32_t* v) { return ReceiveBytes(v, sizeof *v) && ((*v = be32toh(*v)), true); }
  bool Receive(uint64_t* v) { return ReceiveBytes(v, sizeof *v) && ((*v = be64toh(*v)), true); }

  bool OptionReply(uint32_t option, uint32_t type, absl::string_view data = "") {
    return Send(
        Message().U64(kOptionReplyMagic).U32(option).U32(type).U32(static_cast<uint32_t>(data.size())).Raw(data));
  }

  const NbdExport* Find(absl::string_view name) const {
    auto found = std::find_if(exports_.begin(), exports_.end(), [&](const NbdExport& e) { return e.name == name; });
    return found == exports_.end() ? nullptr : &*found;
  }

  // False when the negotiation is over, well (export_ is set) or not.
  bool HandleOption() {
    uint64_t magic;
    uint32_t option, size;
    if (!Receive(&magic) || magic != kOptionMagic || !Receive(&option) || !Receive(&size) || size > kMaxOption) {
      return false;
    }
    std::string data(size, '\0');
    if (!ReceiveBytes(data.data(), size)) return false;
    switch (option) {
      case kStructured:
        structured_ = true;
        return OptionReply(option, kAck);
      case kListContexts:
      case kSetContexts:
        return HandleContexts(option, data);
      case kInfo:
      case kGo: {
        const NbdExport* wanted = data.size() < 4 ? nullptr : Find(PrefixedText(data, 0));
        if (wanted == nullptr) return OptionReply(option, kUnsupported);
        // Has flags, read-only, may be used over several connections.
        Message info;
        info.U16(0).U64(wanted->content.size()).U16(1 | 2 | 256);
        if (!OptionReply(option, kInfoReply, info.bytes()) || !OptionReply(option, kAck)) return false;
        if (option == kInfo) return true;
        export_ = wanted;
        return false;
      }
      case kAbort:
        OptionReply(option, kAck);
        return false;
      default:
        return OptionReply(option, kUnsupported);
    }
  }

  // The text with a 32-bit length at `at`; empty when it does not fit.
  static absl::string_view PrefixedText(absl::string_view data, size_t at) {
    if (at + 4 > data.size()) return "";
    uint32_t size;
    std::memcpy(&size, data.data() + at, sizeof size);
    return data.substr(at + 4, be32toh(size));
  }

  bool HandleContexts(uint32_t option, absl::string_view data) {
    absl::string_view name = PrefixedText(data, 0);
    const NbdExport* wanted = Find(name);
    if (wanted == nullptr) return OptionReply(option, kUnsupported);
    contexts_.clear();
    for (size_t at = 4 + name.size() + 4; at + 4 <= data.size();) {
      absl::string_view query = PrefixedText(data, at);
      at += 4 + query.size();
      uint32_t id = 0;
      if (query == "base:allocation") id = kAllocationId;
      if (query == wanted->dirty_context && !query.empty()) id = kDirtyId;
      if (id == 0) continue;
      contexts_.push_back(id);
      if (!OptionReply(option, kContextReply, Message().U32(id).Raw(query).bytes())) return false;
    }
    return OptionReply(option, kAck);
  }

  bool ChunkReply(uint64_t cookie, uint16_t flags, uint16_t type, absl::string_view data) {
    return Send(
        Message().U32(kChunkMagic).U16(flags).U16(type).U64(cookie).U32(static_cast<uint32_t>(data.size())).Raw(data));
  }
  bool ErrorReply(uint64_t cookie, uint32_t error) {
    return ChunkReply(cookie, 1, kError, Message().U32(error).U16(0).bytes());
  }

  bool HandleRequest() {
    uint32_t magic, size;
    uint16_t flags, type;
    uint64_t cookie, offset;
    if (!Receive(&magic) || magic != kRequestMagic || !Receive(&flags) || !Receive(&type) || !Receive(&cookie) ||
        !Receive(&offset) || !Receive(&size) || type == kDisconnect || !structured_) {
      return false;
    }
    if (offset > export_->content.size() || size > export_->content.size() - offset) return ErrorReply(cookie, EINVAL);
    if (type == kBlockStatus) return StatusReply(cookie, offset, size, (flags & 8) != 0);
    if (type != kRead || size > kMaxRead) return ErrorReply(cookie, EINVAL);
    while (offset + size > export_->hang_reads_from && !stopping_) absl::SleepFor(absl::Milliseconds(5));
    if (offset + size > export_->drop_reads_from) return false;
    if (failing_ || offset + size > export_->fail_reads_from) return ErrorReply(cookie, export_->read_error);
    return ChunkReply(cookie, 1, kOffsetData,
                      Message().U64(offset).Raw(absl::string_view(export_->content).substr(offset, size)).bytes());
  }

  uint32_t FlagsAt(uint32_t context, uint64_t offset) const {
    uint64_t block = offset / NbdExport::kDirtyBlock;
    if (context == kDirtyId) return export_->dirty.contains(block) ? 1 : 0;
    absl::string_view bytes = absl::string_view(export_->content).substr(block * NbdExport::kDirtyBlock);
    bytes = bytes.substr(0, NbdExport::kDirtyBlock);
    return bytes.find_first_not_of('\0') == absl::string_view::npos ? 3 : 0;  // Hole and zero, or data.
  }

  bool StatusReply(uint64_t cookie, uint64_t offset, uint32_t size, bool only_one) {
    if (contexts_.empty()) return ErrorReply(cookie, EINVAL);
    while (export_->hang_status && !stopping_) absl::SleepFor(absl::Milliseconds(5));
    if (export_->status_error != 0) return ErrorReply(cookie, export_->status_error);
    for (uint32_t context : contexts_) {
      Message extents;
      extents.U32(context);
      uint64_t at = offset;
      do {
        uint64_t begin = at;
        uint32_t flags = FlagsAt(context, begin);
        while (at < offset + size && FlagsAt(context, at) == flags) {
          at = (at / NbdExport::kDirtyBlock + 1) * NbdExport::kDirtyBlock;
        }
        at = std::min(at, offset + size);
        extents.U32(static_cast<uint32_t>(at - begin)).U32(flags);
      } while (at < offset + size && !only_one);
      if (!ChunkReply(cookie, context == contexts_.back() ? 1 : 0, kStatus, extents.bytes())) return false;
    }
    return true;
  }

  const int fd_;
  const std::vector<NbdExport>& exports_;
  const std::atomic<bool>& stopping_;
  const std::atomic<bool>& failing_;
  const NbdExport* export_ = nullptr;
  bool structured_ = false;
  std::vector<uint32_t> contexts_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<NbdServer>> NbdServer::Start(const std::string& socket_path,
                                                            std::vector<NbdExport> exports) {
  STILL_ASSIGN_OR_RETURN(OwnedFd listening, ListenUnix(socket_path));
  std::unique_ptr<NbdServer> server(new NbdServer(std::move(listening), std::move(exports)));
  server->acceptor_ = std::thread([raw = server.get()] { raw->AcceptLoop(); });
  return server;
}

NbdServer::~NbdServer() {
  stopping_ = true;
  ::shutdown(listening_.get(), SHUT_RDWR);
  acceptor_.join();
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& connection : connections_) ::shutdown(connection->get(), SHUT_RDWR);
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

void NbdServer::AcceptLoop() {
  while (!stopping_) {
    auto fd = AcceptWithin(listening_.get(), absl::InfiniteDuration(), "nbd");
    if (!fd.ok()) return;
    auto connection = std::make_shared<OwnedFd>(*std::move(fd));
    absl::MutexLock lock(&mutex_);
    connections_.push_back(connection);
    threads_.emplace_back([this, connection] {
      Connection(connection->get(), exports_, stopping_, failing_).Serve();
      ::shutdown(connection->get(), SHUT_RDWR);
    });
  }
}

}  // namespace still::testing
