#include "tests/guest/record.h"

#include <algorithm>
#include <vector>

#include "tests/guest/program.h"

namespace still::guest {
namespace {

constexpr char kMagic[8] = {'S', 'T', 'I', 'L', 'L', 'R', 'E', 'C'};

// FNV-1a, 64 bits.
uint64_t Checksum(const Record& record) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&record);
  uint64_t hash = 0xcbf29ce484222325;
  for (size_t i = 0; i < offsetof(Record, checksum); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

std::vector<Record> ReadSlots(const std::string& path) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (fd < 0 || fstat(fd, &info) != 0) Die(path);
  std::vector<Record> records((info.st_size + kRecordSize - 1) / kRecordSize);
  size_t done = 0;
  while (done < static_cast<size_t>(info.st_size)) {
    ssize_t n = read(fd, reinterpret_cast<char*>(records.data()) + done, info.st_size - done);
    if (n <= 0) Die(path);
    done += n;
  }
  close(fd);
  return records;
}

}  // namespace

Record MakeRecord(uint64_t number, uint64_t slots, uint64_t now_ns) {
  Record record;
  std::memcpy(record.magic, kMagic, sizeof(kMagic));
  record.number = number;
  record.written_at_ns = now_ns;
  record.slots = slots;
  uint64_t state = number * 0x9e3779b97f4a7c15 + 1;
  for (uint8_t& byte : record.filling) {
    state = state * 6364136223846793005 + 1442695040888963407;
    byte = state >> 56;
  }
  record.checksum = Checksum(record);
  return record;
}

bool IsIntact(const Record& record) {
  return std::memcmp(record.magic, kMagic, sizeof(kMagic)) == 0 && record.checksum == Checksum(record);
}

RecordFile ReadRecords(const std::string& path) {
  const std::vector<Record> records = ReadSlots(path);
  RecordFile result;
  for (uint64_t slot = 0; slot < records.size(); ++slot) {
    const Record& record = records[slot];
    if (!IsIntact(record) || (!result.empty && record.number <= result.newest)) continue;
    result.empty = false;
    result.slots = record.slots;
    result.newest = record.number;
    result.newest_written_at_ns = record.written_at_ns;
  }
  if (result.empty) {
    result.unfinished = !records.empty();
    return result;
  }
  result.oldest = result.newest < result.slots ? 0 : result.newest - result.slots + 1;
  const uint64_t next_slot = (result.newest + 1) % result.slots;
  for (uint64_t number = result.oldest; number <= result.newest; ++number) {
    const uint64_t slot = number % result.slots;
    if (slot < records.size() && IsIntact(records[slot]) && records[slot].number == number) continue;
    if (slot == next_slot) {  // The oldest record, while it is being replaced.
      result.unfinished = true;
      ++result.oldest;
      continue;
    }
    if (result.damaged++ == 0) result.first_damaged_slot = slot;
  }
  // While the file still grows, whatever lies behind the newest record is the beginning of the next one.
  if (result.newest + 1 < result.slots && records.size() > result.newest + 1) result.unfinished = true;
  if (records.size() > std::min(result.newest + 2, result.slots)) ++result.damaged;
  return result;
}

}  // namespace still::guest
