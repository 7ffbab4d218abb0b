# The project's own build rules: how every library, program and test here is compiled.

add_library(still_flags INTERFACE)
target_include_directories(still_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(still_flags INTERFACE
  -Wall -Wextra $<$<BOOL:${STILL_WERROR}>:-Werror> -Wnon-virtual-dtor -Woverloaded-virtual -Wimplicit-fallthrough -Wvla
  -Wno-missing-field-initializers  # Options structs are filled by designated initialisers; the rest has defaults.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>)  # GCC 12 reports std::string concatenation (GCC bug 105651).
target_compile_definitions(still_flags INTERFACE _GNU_SOURCE _FILE_OFFSET_BITS=64 STILL_VERSION="${PROJECT_VERSION}")
if(STILL_SANITIZE)
  target_compile_options(still_flags INTERFACE -fsanitize=${STILL_SANITIZE} -fno-sanitize-recover=all
    -fno-omit-frame-pointer $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)
  target_link_options(still_flags INTERFACE -fsanitize=${STILL_SANITIZE})
endif()

# Where the preset asks for unity builds (all but debug do), the files of a target are compiled a dozen at once, which reads
# the same headers fewer times and takes about a third of the time. Names in them must therefore be unique within a target,
# also those in unnamed namespaces.
set(CMAKE_UNITY_BUILD_BATCH_SIZE 12)
if(CMAKE_UNITY_BUILD)  # GCC takes a source that is included for a header, which should not use unnamed namespaces.
  target_compile_options(still_flags INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
endif()

# still_library(NAME SRCS ... DEPS ...): a static library with the project's flags.
function(still_library name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_SRCS})
  target_link_libraries(${name} PUBLIC still_flags ${arg_DEPS})
endfunction()

# What an executable needs beside the compiler's flags.
function(still_sanitizer_runtime name)
  if(STILL_SANITIZE MATCHES thread)
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/support/tsan_runtime.cc)
    target_link_libraries(${name} PRIVATE ${CMAKE_DL_LIBS})
  endif()
  if(STILL_ABSEIL_KNOWS_ASAN)
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/support/asan_runtime.cc)
  endif()
endfunction()

# still_program(NAME SRCS ... DEPS ... [OUTPUT file-name])
function(still_program name)
  cmake_parse_arguments(arg "" "OUTPUT" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${arg_SRCS})
  target_link_libraries(${name} PRIVATE still_flags ${arg_DEPS})
  if(arg_OUTPUT)
    set_target_properties(${name} PROPERTIES OUTPUT_NAME ${arg_OUTPUT})
  endif()
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  still_sanitizer_runtime(${name})
endfunction()

# The unit and contract tests: what the sanitizer builds need of everything.
add_custom_target(library_tests)

# A time limit catches a hang and nothing else: no test is near it on a machine that has other things to do.
set(STILL_HANG_SECONDS 1800)
# Ends a test of which a part was skipped; tests/support/run_ctest.py lists them and their reasons.
set(STILL_SKIPPED_EXIT_CODE 77)

# still_test_entry(NAME LABELS label..): what every ctest entry has.
function(still_test_entry name)
  cmake_parse_arguments(arg "" "" "LABELS" ${ARGN})
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${STILL_HANG_SECONDS}
    SKIP_RETURN_CODE ${STILL_SKIPPED_EXIT_CODE})
  if("${arg_LABELS}" MATCHES "e2e")  # Emulated machines starve each other: one at a time.
    set_tests_properties(${name} PROPERTIES RESOURCE_LOCK virtual-machine)
  endif()
endfunction()

# still_test(NAME SRCS ... DEPS ... [LABELS unit|contract|kernel|crash|e2e ...] [NEEDS target...] [DEFINITIONS NAME="value"...]
# [ENVIRONMENT NAME=value...] [BOTH_QEMUS]): one GoogleTest program, one ctest entry. The default label is unit: no privileges,
# no VM, seconds. NEEDS are programs that it runs. BOTH_QEMUS adds the entry NAME_other_qemu, which runs it with the other
# Debian's QEMU (tools/other-qemu), where there are no sanitizers. Without GoogleTest, which who only builds does not have, there
# is neither target nor entry: so all that is to be said of a test is said here.
function(still_test name)
  if(NOT GTest_FOUND)
    return()
  endif()
  cmake_parse_arguments(arg "BOTH_QEMUS" "" "SRCS;DEPS;LABELS;NEEDS;DEFINITIONS;ENVIRONMENT" ${ARGN})
  if(NOT arg_LABELS)
    set(arg_LABELS unit)
  endif()
  add_executable(${name} ${arg_SRCS})
  target_link_libraries(${name} PRIVATE still_flags ${arg_DEPS} still_test_main)
  target_compile_definitions(${name} PRIVATE ${arg_DEFINITIONS})
  still_sanitizer_runtime(${name})
  if(arg_NEEDS)
    add_dependencies(${name} ${arg_NEEDS})
  endif()
  set(entries ${name})
  add_test(NAME ${name} COMMAND ${name})
  still_test_entry(${name} LABELS ${arg_LABELS})
  if(arg_BOTH_QEMUS AND NOT STILL_SANITIZE)
    add_test(NAME ${name}_other_qemu COMMAND ${PROJECT_SOURCE_DIR}/tests/support/with_other_qemu $<TARGET_FILE:${name}>)
    still_test_entry(${name}_other_qemu LABELS ${arg_LABELS})
    list(APPEND entries ${name}_other_qemu)
  endif()
  set_property(TEST ${entries} PROPERTY ENVIRONMENT ${arg_ENVIRONMENT})
  if("${arg_LABELS}" MATCHES "unit|contract")
    add_dependencies(library_tests ${name})
  endif()
endfunction()

# still_python_test(NAME MODULE[.CLASS] LABELS label.. [BOTH_QEMUS]): tests of a Python module in this folder, against the
# programs of this build (STILL_BUILD). What runs with the other Debian's QEMU is sampled (run_ctest.py).
find_package(Python3 COMPONENTS Interpreter)
function(still_python_test name module)
  cmake_parse_arguments(arg "BOTH_QEMUS" "" "LABELS" ${ARGN})
  set(runs ${name})
  if(arg_BOTH_QEMUS)
    list(APPEND runs ${name}_other_qemu)
  endif()
  foreach(run ${runs})
    set(with "")
    set(sampled "")
    if(NOT run STREQUAL name)
      set(sampled sampled)
      set(with ${PROJECT_SOURCE_DIR}/tests/support/with_other_qemu)
    endif()
    add_test(NAME ${run}
      COMMAND ${with} ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/support/run_unittest.py ${module}
      WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
    still_test_entry(${run} LABELS ${arg_LABELS} ${sampled})
    set_tests_properties(${run} PROPERTIES ENVIRONMENT
      "STILL_BUILD=${PROJECT_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1;PYTHONPATH=${PROJECT_SOURCE_DIR}/tests/e2e")
  endforeach()
endfunction()

# still_fuzz(NAME SRCS ... DEPS ... CORPUS dir): a libFuzzer target with -DSTILL_FUZZ=ON. Without it the same file is linked
# with a main() that replays the corpus, so that the regressions of every build run what the fuzzer once found.
# `tools/dev fuzz` reads build/fuzz/fuzzers.txt: name, program and corpus of each.
if(STILL_FUZZ)
  add_custom_target(fuzzers)
  file(WRITE ${PROJECT_BINARY_DIR}/fuzzers.txt "")
endif()
function(still_fuzz name)
  cmake_parse_arguments(arg "" "CORPUS" "SRCS;DEPS" ${ARGN})
  if(STILL_FUZZ)
    add_executable(${name} ${arg_SRCS})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
    file(APPEND ${PROJECT_BINARY_DIR}/fuzzers.txt "${name}\t${PROJECT_BINARY_DIR}/bin/${name}\t${arg_CORPUS}\n")
    add_dependencies(fuzzers ${name})
  else()
    add_executable(${name} ${arg_SRCS} ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.cc)
    add_test(NAME ${name} COMMAND ${name} ${arg_CORPUS})
    still_test_entry(${name} LABELS unit)
    add_dependencies(library_tests ${name})
  endif()
  target_link_libraries(${name} PRIVATE still_flags ${arg_DEPS})
endfunction()

# still_proto(NAME [GRPC] FILE): a library of the code generated from proto/FILE.
function(still_proto name file)
  cmake_parse_arguments(arg "GRPC" "" "DEPS" ${ARGN})
  get_filename_component(stem ${file} NAME_WE)
  set(dir ${PROJECT_BINARY_DIR}/generated)
  set(out ${dir}/proto/${stem}.pb.cc ${dir}/proto/${stem}.pb.h)
  set(args --cpp_out=${dir})
  if(arg_GRPC)
    list(APPEND out ${dir}/proto/${stem}.grpc.pb.cc ${dir}/proto/${stem}.grpc.pb.h)
    list(APPEND args --grpc_out=generate_mock_code=false:${dir} --plugin=protoc-gen-grpc=${GRPC_CPP_PLUGIN})
  endif()
  file(MAKE_DIRECTORY ${dir})
  add_custom_command(OUTPUT ${out}
    COMMAND ${PROTOC} -I ${PROJECT_SOURCE_DIR} ${args} proto/${file}
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    DEPENDS ${PROJECT_SOURCE_DIR}/proto/${file} VERBATIM)
  add_library(${name} STATIC ${out})
  # Generated code is held to no warnings of ours, but must be built with the same sanitizers.
  target_include_directories(${name} SYSTEM PUBLIC ${dir})
  target_link_libraries(${name} PUBLIC dep_protobuf ${arg_DEPS})
  if(arg_GRPC)
    target_link_libraries(${name} PUBLIC dep_grpc)
  endif()
  if(STILL_SANITIZE)
    target_compile_options(${name} PRIVATE -fsanitize=${STILL_SANITIZE})
  endif()
endfunction()

# still_static_grpc_program(NAME SRCS file.. ARCHIVES library.. OUTPUT name): a program with gRPC that needs no shared library. Those
# that the libraries' usage requirements name must not reach its link line, so the archives are named. (A static program cannot be
# built with sanitizers.)
function(still_static_grpc_program name)
  cmake_parse_arguments(arg "" "OUTPUT" "SRCS;ARCHIVES" ${ARGN})
  add_executable(${name} ${arg_SRCS})
  target_compile_options(${name} PRIVATE $<TARGET_PROPERTY:still_flags,INTERFACE_COMPILE_OPTIONS>)
  target_compile_definitions(${name} PRIVATE $<TARGET_PROPERTY:still_flags,INTERFACE_COMPILE_DEFINITIONS>)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_include_directories(${name} SYSTEM PRIVATE ${PROJECT_BINARY_DIR}/generated)
  set(archives "")
  foreach(archive ${arg_ARCHIVES})
    list(APPEND archives $<TARGET_FILE:${archive}>)
  endforeach()
  add_dependencies(${name} ${arg_ARCHIVES})
  execute_process(COMMAND ${PKG_CONFIG_EXECUTABLE} --static --libs grpc++_unsecure protobuf
    OUTPUT_VARIABLE static_libraries OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(static_libraries)
  list(FILTER static_libraries INCLUDE REGEX "^-l")
  list(REMOVE_DUPLICATES static_libraries)
  target_link_options(${name} PRIVATE -static -Wl,--gc-sections)
  target_link_libraries(${name} PRIVATE
    -Wl,--start-group ${archives} ${static_libraries} -laddress_sorting -lupb -lre2 -lcares -lz -Wl,--end-group)
  set_target_properties(${name} PROPERTIES OUTPUT_NAME ${arg_OUTPUT} LINK_DEPENDS "${archives}")
endfunction()
