// Records: numbered, time-stamped, checksummed blocks of 512 bytes in a file of `slots` slots. Record N is in slot
// N % slots, so the file first grows and is then overwritten: both are what a disk snapshot has to get right.
#pragma once

#include <cstdint>
#include <string>

namespace still::guest {

constexpr uint64_t kRecordSize = 512;
constexpr uint64_t kDefaultSlots = 16384;  // 8 MiB.

struct Record {
  char magic[8];
  uint64_t number;
  uint64_t written_at_ns;  // CLOCK_BOOTTIME just before the write.
  uint64_t slots;
  uint8_t filling[kRecordSize - 40];  // Depends on the number, so that no two records are alike.
  uint64_t checksum;                  // Of everything before.
};
static_assert(sizeof(Record) == kRecordSize);

Record MakeRecord(uint64_t number, uint64_t slots, uint64_t now_ns);
bool IsIntact(const Record& record);

// What a file of records holds. Every number is consistent with one writer that acknowledged each record before it
// began the next: all records from `oldest` to `newest` are there, and at most the one after `newest` is half written.
struct RecordFile {
  bool empty = true;
  uint64_t slots = 0;
  uint64_t oldest = 0;
  uint64_t newest = 0;
  uint64_t newest_written_at_ns = 0;
  bool unfinished = false;  // The slot after the newest record holds neither what it had before nor a new record.
  uint64_t damaged = 0;     // Slots that should hold a record and hold something else.
  uint64_t first_damaged_slot = 0;
};

// Ends the program when the file cannot be read.
RecordFile ReadRecords(const std::string& path);

}  // namespace still::guest
