// Mount tables of small guests, and what a host asks of them.
#pragma once

#include <cstdint>
#include <string>

#include "proto/guest.pb.h"

namespace still::agent {

namespace pb = ::stillpoint::guest::v1;

inline std::string OneDisk() { return "90000021 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"; }

inline std::string FourDisks() {
  return "90000021 1 254:0 / / rw - ext4 /dev/vda rw\n"
         "90000022 90000021 0:5 / /proc rw - proc proc rw\n"
         "90000030 90000021 254:16 / /a rw - ext4 /dev/vdb rw\n"
         "90000031 90000021 254:32 / /b rw - xfs /dev/vdc rw\n"
         "90000032 90000021 254:48 / /c rw - ext4 /dev/vdd rw\n";
}

inline pb::QuiesceRequest QuiesceOf(const std::string& token, uint32_t lease_ms = 5000) {
  pb::QuiesceRequest request;
  request.set_token(token);
  request.set_lease_ms(lease_ms);
  return request;
}

inline pb::ThawRequest ThawOf(const std::string& token) {
  pb::ThawRequest request;
  request.set_token(token);
  return request;
}

}  // namespace still::agent
