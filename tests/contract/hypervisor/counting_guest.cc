#include "tests/contract/hypervisor/counting_guest.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/file.h"

// The firmware loads a boot sector to 0x7c00; code that is linked elsewhere therefore addresses its data as
// 0x7c00 + (label - begin).
asm(R"(
    .pushsection .rodata
    .code16
    .globl still_counting_guest, still_counting_guest_end
still_counting_guest:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp

    # A segment that reaches beyond 1 MiB: loaded in protected mode, kept in real mode.
    lgdt 0x7c00 + (still_guest_gdtr - still_counting_guest)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    movw $8, %bx
    movw %bx, %fs
    andb $0xfe, %al
    movl %eax, %cr0

    movl $0x1000000, %edi
1:  movl %edi, %fs:(%edi)
    addl $0x1000, %edi
    cmpl $0x3000000, %edi
    jb 1b
    xorw %ax, %ax
    movw %ax, %fs
    sti

    xorl %ebp, %ebp
2:  incl %ebp
    movl %ebp, 0x8000
    movw %bp, %ax
    andw $0x3f, %ax
    shlw $8, %ax
    addw $0x1000, %ax
    movw %ax, %es
    movl %ebp, %es:0
    movl %ebp, 0x9000
    movw %bp, %ax
    andl $0x3f, %eax
    incl %eax
    movl %eax, 0x7c00 + (still_guest_sector - still_counting_guest)
    movb $0x80, %dl
    call 3f
    jc 4f
    movb $0x81, %dl
    call 3f
    movl %ebp, 0x8004
    movb $'.', %al
    movw $0x3f8, %dx
    outb %al, %dx
    jmp 2b

    # Extended write (INT 13h, AH=43h) of one sector to disk DL.
3:  movw $0x4300, %ax
    movw $0x7c00 + (still_guest_packet - still_counting_guest), %si
    int $0x13
    ret

4:  movb $'E', %al
    movw $0x3f8, %dx
    outb %al, %dx
    hlt
    jmp 4b

    .balign 4
still_guest_packet:
    .byte 16, 0
    .word 1
    .word 0x9000, 0
still_guest_sector:
    .long 1, 0
still_guest_gdt:
    .quad 0
    .quad 0x00cf92000000ffff
still_guest_gdtr:
    .word 15
    .long 0x7c00 + (still_guest_gdt - still_counting_guest)
still_counting_guest_end:

    .globl still_resetting_guest, still_resetting_guest_end
still_resetting_guest:
    movb $0xfe, %al
    outb %al, $0x64
1:  hlt
    jmp 1b
still_resetting_guest_end:

    .globl still_ending_guest, still_ending_guest_end
still_ending_guest:
    # PM1a_CNT where SeaBIOS puts it on a q35: SLP_EN, with the sleep type of S5.
    movw $0x604, %dx
    movw $0x2000, %ax
    outw %ax, %dx
1:  hlt
    jmp 1b
still_ending_guest_end:
    .code64
    .popsection
)");

extern "C" const char still_counting_guest[], still_counting_guest_end[];
extern "C" const char still_resetting_guest[], still_resetting_guest_end[];
extern "C" const char still_ending_guest[], still_ending_guest_end[];

namespace still::testing {
namespace {

std::string BootSector(const char* begin, const char* end) {
  std::string sector(begin, end);
  sector.resize(kSectorBytes, '\0');
  sector[510] = '\x55';
  sector[511] = '\xaa';
  return sector;
}

}  // namespace

std::string CountingGuest() { return BootSector(still_counting_guest, still_counting_guest_end); }
std::string ResettingGuest() { return BootSector(still_resetting_guest, still_resetting_guest_end); }
std::string EndingGuest() { return BootSector(still_ending_guest, still_ending_guest_end); }

absl::Status MakeRawDisk(const std::string& path, uint64_t size, const std::string& boot_sector) {
  STILL_ASSIGN_OR_RETURN(OwnedFd file, OpenFile(path, O_RDWR | O_CREAT | O_TRUNC));
  if (::ftruncate(file.get(), static_cast<off_t>(size)) != 0) return ErrnoStatus(errno, "ftruncate");
  return PWriteAll(file.get(), boot_sector.data(), boot_sector.size(), 0, path);
}

uint32_t NewestRecord(const std::string& image) {
  uint32_t newest = 0;
  for (uint64_t sector = 1; sector <= kRecordSectors; ++sector) {
    uint32_t record;
    std::memcpy(&record, image.data() + sector * kSectorBytes, sizeof record);
    newest = std::max(newest, record);
  }
  return newest;
}

}  // namespace still::testing
