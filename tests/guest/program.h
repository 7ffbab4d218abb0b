// What the guest programs share: they are small static binaries without libraries, end with a message on any surprise,
// and publish what they know in a file on tmpfs that their --report mode reads.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

namespace still::guest {

// Ends the program with exit code 2 and "what: errno's text" on stderr.
[[noreturn]] inline void Die(const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(2);
}

inline uint64_t BoottimeNs() {
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return uint64_t{1000000000} * now.tv_sec + now.tv_nsec;
}

inline void SleepNs(uint64_t ns) {
  timespec wait = {static_cast<time_t>(ns / 1000000000), static_cast<long>(ns % 1000000000)};
  nanosleep(&wait, nullptr);
}

// T lives in a file on tmpfs: one process writes it, others read it while it runs and after it died. T holds only
// lock-free atomics, zero at first.
template <typename T>
T* CreateShared(const std::string& path) {
  const std::string temporary = path + ".new";  // A reader sees the old one or the new one, never half of it.
  int fd = open(temporary.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0 || ftruncate(fd, sizeof(T)) != 0) Die(temporary);
  void* address = mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED || rename(temporary.c_str(), path.c_str()) != 0) Die(path);
  close(fd);
  return new (address) T;
}

template <typename T>
T* OpenShared(const std::string& path) {
  int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) Die(path);
  struct stat info;
  if (fstat(fd, &info) != 0 || info.st_size != sizeof(T)) Die(path + " is not of this program's version");
  void* address = mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) Die(path);
  close(fd);
  return static_cast<T*>(address);
}

// "true" or "false", for JSON: whether the process that publishes still runs.
inline const char* IsRunning(uint64_t pid) { return kill(static_cast<pid_t>(pid), 0) == 0 ? "true" : "false"; }

// The value of `--name VALUE` in argv, or `fallback`.
inline std::string Option(int argc, char** argv, const char* name, const std::string& fallback) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], name) == 0) return argv[i + 1];
  }
  return fallback;
}

inline bool Flag(int argc, char** argv, const char* name) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], name) == 0) return true;
  }
  return false;
}

inline uint64_t NumberOption(int argc, char** argv, const char* name, uint64_t fallback) {
  const std::string text = Option(argc, argv, name, "");
  return text.empty() ? fallback : std::strtoull(text.c_str(), nullptr, 10);
}

}  // namespace still::guest
