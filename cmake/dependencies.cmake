# Every third-party library, all from Debian 12 or 13. tools/dev setup installs them (tools/packages); keep the two in step.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(absl CONFIG REQUIRED)
# Under the address sanitizer newer hash tables look different (raw_hash_set.h, "generations"), and Debian's library, which is
# built without it, does not know them.
if(STILL_SANITIZE MATCHES address AND absl_VERSION VERSION_GREATER_EQUAL 20230125)
  set(STILL_ABSEIL_KNOWS_ASAN ON)  # tests/support/asan_runtime.cc
  target_compile_definitions(still_flags INTERFACE NDEBUG_SANITIZER)
endif()
find_package(GTest CONFIG)  # Only who runs the tests needs it.
if(NOT GTest_FOUND)
  message(STATUS "GoogleTest is not installed (tools/dev setup test): the tests that are programs are not built")
endif()
find_program(PROTOC protoc REQUIRED)
find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)

pkg_check_modules(PROTOBUF REQUIRED IMPORTED_TARGET protobuf)
pkg_check_modules(GRPC REQUIRED IMPORTED_TARGET grpc++_unsecure)
pkg_check_modules(SQLITE REQUIRED IMPORTED_TARGET sqlite3)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(CRYPTO REQUIRED IMPORTED_TARGET libcrypto)
pkg_check_modules(SODIUM REQUIRED IMPORTED_TARGET libsodium)
pkg_check_modules(NBD REQUIRED IMPORTED_TARGET libnbd)
pkg_check_modules(CURL REQUIRED IMPORTED_TARGET libcurl)
pkg_check_modules(SYSTEMD REQUIRED IMPORTED_TARGET libsystemd)
pkg_check_modules(PROMETHEUS REQUIRED IMPORTED_TARGET prometheus-cpp-core)

add_library(dep_protobuf INTERFACE)
target_link_libraries(dep_protobuf INTERFACE PkgConfig::PROTOBUF Threads::Threads)
# Every channel here is an inherited descriptor or a UNIX socket, so gRPC without TLS.
add_library(dep_grpc INTERFACE)
target_link_libraries(dep_grpc INTERFACE PkgConfig::GRPC)
add_library(dep_absl INTERFACE)
target_link_libraries(dep_absl INTERFACE absl::status absl::statusor absl::strings absl::str_format absl::time absl::span
  absl::synchronization absl::flat_hash_map absl::flat_hash_set absl::cleanup absl::base)
