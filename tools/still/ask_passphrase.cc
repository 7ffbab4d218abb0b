// AskPassphrase (context.h): on a terminal without echo, which comes back whatever ends the question.
#include <fcntl.h>
#include <signal.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>

#include "base/fd.h"
#include "base/file.h"
#include "tools/still/context.h"

namespace still::cli {
namespace {

// What would end or stop the process with the terminal silent.
constexpr std::array kSignals = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU};

volatile sig_atomic_t caught_signal = 0;
void CatchSignal(int number) { caught_signal = number; }

bool IsStop(int number) { return number == SIGTSTP || number == SIGTTIN || number == SIGTTOU; }

// Without SA_RESTART: a read ends with EINTR.
class CaughtSignals {
 public:
  CaughtSignals() {
    caught_signal = 0;
    struct sigaction action {};
    action.sa_handler = CatchSignal;
    for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &before_[i]);
  }
  ~CaughtSignals() {
    for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  std::array<struct sigaction, kSignals.size()> before_{};
};

// Of a terminal; errors to show something are no reason not to ask.
void ShowOnTerminal(int fd, const std::string& text) {
  WriteAll(fd, text.data(), text.size(), "terminal").IgnoreError();
}

// A line without its end; what there is when a signal was caught.
absl::StatusOr<std::string> ReadSilentLine(int fd, int shown_on, const std::string& prompt) {
  termios before{};
  if (::tcgetattr(fd, &before) != 0) return ErrnoStatus(errno, "terminal");
  termios silent = before;
  silent.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  if (::tcsetattr(fd, TCSAFLUSH, &silent) != 0 && caught_signal == 0) return ErrnoStatus(errno, "terminal");
  ShowOnTerminal(shown_on, prompt);
  std::string line;
  int error_number = 0;
  while (caught_signal == 0) {
    char c = 0;
    const ssize_t got = ::read(fd, &c, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) error_number = errno;
    if (got <= 0 || c == '\n') break;
    line += c;
  }
  ::tcsetattr(fd, TCSAFLUSH, &before);
  ShowOnTerminal(shown_on, "\n");
  if (error_number != 0) return ErrnoStatus(error_number, "read the passphrase");
  return line;
}

}  // namespace

absl::StatusOr<std::string> AskPassphrase(const std::string& prompt, bool input_is_data) {
  OwnedFd terminal;
  int fd = STDIN_FILENO;
  int shown_on = STDERR_FILENO;
  if (input_is_data) {
    if (absl::StatusOr<OwnedFd> opened = OpenFile("/dev/tty", O_RDWR); opened.ok()) terminal = *std::move(opened);
    fd = shown_on = terminal.get();
  }
  if (fd < 0 || ::isatty(fd) == 0) {
    return absl::FailedPreconditionError("a passphrase is needed: set STILL_PASSPHRASE or give --key-file");
  }
  for (;;) {
    absl::StatusOr<std::string> line;
    {
      CaughtSignals caught;
      line = ReadSilentLine(fd, shown_on, prompt);
    }
    if (caught_signal != 0) {
      const int number = caught_signal;
      // As if it had come now, with the terminal as it was. Whoever is stopped is asked again afterwards.
      ::raise(number);
      if (IsStop(number)) continue;
      return absl::CancelledError("interrupted");
    }
    if (!line.ok()) return line.status();
    if (line->empty()) return absl::InvalidArgumentError("the passphrase is empty");
    return line;
  }
}

}  // namespace still::cli
