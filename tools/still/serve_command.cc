// serve: snapshots over NBD, by nbdkit with our plugin.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/absolute_path.h"
#include "base/file.h"
#include "base/find_sibling.h"
#include "base/names.h"
#include "base/secret.h"
#include "base/unix_socket.h"
#include "session/control/session_registry.h"
#include "tools/still/context.h"
#include "tools/still/format.h"
#include "tools/still/standard_streams.h"

namespace still::cli {
namespace {

constexpr int kListenFd = 3;  // What nbdkit is told to take over (sd_listen_fds(3)).

struct ServeArguments {
  std::string snapshot;
  std::string socket;
  int listen_fd = -1;
  int passphrase_fd = -1;
};

// Becomes nbdkit, with the listening socket and the passphrase as descriptors: neither a path too long for a socket's
// address nor a secret stands on its command line.
absl::Status BecomeNbdkit(std::vector<std::string> words, OwnedFd listening, int passphrase_fd) {
  STILL_ASSIGN_OR_RETURN(std::string plugin, FindSibling("nbdkit-still-plugin.so", "STILL_NBDKIT_PLUGIN"));
  words.insert(words.begin(), {"nbdkit", "--foreground", "--filter=readahead", plugin});
  if (passphrase_fd >= 0) {
    // Out of the way of the number that the socket gets.
    passphrase_fd = ::fcntl(passphrase_fd, F_DUPFD, kListenFd + 1);
    if (passphrase_fd < 0) return ErrnoStatus(errno, "duplicate the passphrase's descriptor");
    words.push_back(absl::StrCat("passphrase-fd=", passphrase_fd));
  }
  if (listening.get() != kListenFd && ::dup2(listening.get(), kListenFd) < 0) return ErrnoStatus(errno, "dup2");
  if (listening.get() == kListenFd) ::fcntl(listening.Release(), F_SETFD, 0);
  ::setenv("LISTEN_PID", absl::StrCat(::getpid()).c_str(), 1);
  ::setenv("LISTEN_FDS", "1", 1);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execvp(argv[0], argv.data());
  return errno == ENOENT ? absl::FailedPreconditionError("nbdkit is not installed (Debian: nbdkit)")
                         : ErrnoStatus(errno, "start nbdkit");
}

// For a session: everything was checked before it was started, and is opened again by nbdkit alone.
absl::Status ServeSession(Context& context, const ServeArguments& arguments) {
  std::vector<std::string> words = {absl::StrCat("repository=", context.repository_path()),
                                    absl::StrCat("snapshot=", arguments.snapshot)};
  STILL_ASSIGN_OR_RETURN(store::Credentials credentials, context.GivenCredentials());
  if (arguments.passphrase_fd < 0 && !credentials.key_file.empty()) {
    words.push_back(absl::StrCat("key-file=", credentials.key_file));
  }
  return BecomeNbdkit(std::move(words), OwnedFd(arguments.listen_fd), arguments.passphrase_fd);
}

absl::Status Serve(Context& context, ServeArguments arguments) {
  if (arguments.listen_fd >= 0) return ServeSession(context, arguments);
  STILL_ASSIGN_OR_RETURN(RepositoryAccess access, context.OpenRepositoryWithAccess());
  std::vector<std::string> exports;
  if (!arguments.snapshot.empty()) {
    STILL_ASSIGN_OR_RETURN(manifestpb::Snapshot snapshot, access.repository->FindSnapshot(arguments.snapshot));
    arguments.snapshot = snapshot.id();
    for (const manifestpb::Image& image : snapshot.images()) exports.push_back(image.name());
  }
  access.repository.reset();
  if (arguments.socket.empty()) arguments.socket = JoinPath(context.state_directory(), "serve.sock");
  STILL_ASSIGN_OR_RETURN(arguments.socket, AbsolutePath(arguments.socket));
  STILL_RETURN_IF_ERROR(MakeDirectories(std::filesystem::path(arguments.socket).parent_path().string()));
  if (ConnectUnix(arguments.socket).ok()) {
    return absl::AlreadyExistsError(absl::StrCat("somebody serves on ", arguments.socket, "; choose another --socket"));
  }
  STILL_ASSIGN_OR_RETURN(OwnedFd listening, ListenUnix(arguments.socket));
  std::vector<std::string> words = {absl::StrCat("repository=", access.options.path)};
  if (!arguments.snapshot.empty()) words.push_back(absl::StrCat("snapshot=", arguments.snapshot));
  const store::Credentials& credentials = access.options.credentials;
  OwnedFd passphrase;
  if (!credentials.passphrase.empty()) {
    STILL_ASSIGN_OR_RETURN(passphrase, MakeSecretFd(credentials.passphrase));
  } else if (!credentials.key_file.empty()) {
    words.push_back(absl::StrCat("key-file=", credentials.key_file));
  }
  context.Print({{"socket", EscapeName(arguments.socket)}, {"exports", exports}}, [&] {
    if (exports.empty()) std::cout << "nbd+unix:///SNAPSHOT/IMAGE?socket=" << arguments.socket << "\n";
    for (const std::string& name : exports) {
      std::cout << "nbd+unix:///" << name << "?socket=" << arguments.socket << "\n";
    }
  });
  // Whoever does not know the address needs no server. nbdkit would never come to the program's end, which says why.
  absl::Status done;
  if (FlushStandardOutput() == 0) done = BecomeNbdkit(std::move(words), std::move(listening), passphrase.get());
  return FirstError(done, RemoveFile(arguments.socket));  // Nobody serves on it.
}

}  // namespace

void AddServeCommand(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<ServeArguments>();
  CLI::App* serve =
      context.AddCommand(app, "serve", "Serve snapshots over NBD, read-only, to qemu-img, nbdcopy and any other client",
                         [=](Context& c) { return Serve(c, *arguments); });
  serve->add_option("snapshot", arguments->snapshot,
                    "Name, id, or latest; without one, export names are SNAPSHOT/IMAGE and reach all of them");
  serve->add_option("--socket", arguments->socket, "UNIX socket (default: serve.sock in the state directory)");
  serve->add_option("--listen-fd", arguments->listen_fd, "Serve on this listening socket")->group("");
  serve->add_option("--passphrase-fd", arguments->passphrase_fd, "Read the passphrase from it")->group("");
}

}  // namespace still::cli
