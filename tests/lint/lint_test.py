#!/usr/bin/env python3
"""Every rule of lint.py finds what it is there to find, and is quiet about what is right."""

import pathlib
import tempfile
import unittest

import lint

HEADER = "// Owns a thing.\n#pragma once\n"


class LintTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="still-lint-test-")
        self.addCleanup(self.directory.cleanup)
        self.root = pathlib.Path(self.directory.name).resolve()

    def write(self, path, content):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")

    def findings(self, check):
        return list(lint.CHECKS[check](self.root))

    def assert_finds(self, check, *parts):
        findings = self.findings(check)
        self.assertEqual(len(findings), len(parts), findings)
        for finding, part in zip(findings, parts):
            self.assertIn(part, finding)

    def test_an_arrow_against_the_architecture_is_found(self):
        for path in ("base/a.h", "store/a.h", "session/a.h", "snapshot/a.h", "tests/unit/a.h"):
            self.write(path, HEADER)
        self.write("snapshot/good.cc", '#include "session/a.h"\n#include "store/a.h"\n#include "absl/time/time.h"\n'
                                       '#include "proto/guest.grpc.pb.h"\n')
        self.write("tests/unit/good.cc", '#include "snapshot/a.h"\n#include "tests/unit/a.h"\n')
        self.assert_finds("includes")
        self.write("base/bad.cc", '#include "store/a.h"\n')
        self.write("session/bad.cc", 'int a;\n  #  include "store/a.h"\n')
        self.write("store/bad.cc", '#include "tests/unit/a.h"\n#include "session/a.h"\n')
        self.assert_finds("includes", "base/bad.cc:1", "session/bad.cc:2", "store/bad.cc:1", "store/bad.cc:2")

    def test_a_call_without_its_header_is_found(self):
        self.write("base/a.h", HEADER + '#include "absl/strings/str_cat.h"\n')
        self.write("base/a.cc", '#include "base/a.h"\nabsl::StrAppend(&text, 1);\n')
        self.assert_finds("includes")
        self.write("base/b.cc", '#include "base/a.h"\nabsl::StrCat(absl::StrJoin(list, ","));\n')
        self.assert_finds("includes", "base/b.cc:1: include absl/strings/str_cat.h", "base/b.cc:1: include absl/strings/str_join.h")

    def test_an_include_that_is_not_from_the_root_is_found(self):
        self.write("base/a.h", HEADER)
        self.write("base/bad.cc", '#include "a.h"\n#include "../base/a.h"\n#include "base/missing.h"\n')
        self.assert_finds("includes", "base/bad.cc:1", "base/bad.cc:2", "base/bad.cc:3: there is no")

    def test_a_file_that_is_not_formatted_is_found_once(self):
        self.write(".clang-format", "BasedOnStyle: Google\n")
        self.write("base/good.cc", "int a() { return 1; }\n")
        self.write("base/bad.cc", "int  a( ) { return  1; }\nint  b( ) { return  1; }\n")
        self.assert_finds("format", "base/bad.cc:1")

    def test_files_that_are_too_long_are_found(self):
        self.write("base/a.h", "// x\n" * lint.MAX_HEADER_LINES)
        self.write("base/a.cc", "// x\n" * lint.MAX_SOURCE_LINES)
        self.assert_finds("sizes")
        self.write("base/b.h", "// x\n" * (lint.MAX_HEADER_LINES + 1))
        self.write("base/b.cc", "// x\n" * (lint.MAX_SOURCE_LINES + 1))
        self.assert_finds("sizes", "base/b.cc", "base/b.h")

    def test_functions_that_are_too_long_are_found_wherever_they_are(self):
        def function(head, lines, indent=""):
            return f"{indent}{head} {{\n" + f"{indent}  if (x) {{\n{indent}  }}\n" * (lines // 2 - 1) + f"{indent}}}\n"

        limit = lint.MAX_FUNCTION_LINES
        heads = ("void F(int a)", "TEST(A, B)", "absl::Status Class::Method(int a,\n          int b) const")
        for head in heads:
            self.write("base/a.cc", "namespace {\n\nint before = 1;\n\n" + function(head, limit - 2) + "\n}  // namespace\n")
            self.assert_finds("sizes")
            self.write("base/a.cc", "namespace {\n\nint before = 1;\n\n" + function(head, limit + 2) + "\n}  // namespace\n")
            self.assert_finds("sizes", "base/a.cc:5: a function")
        in_class = "class C : public B {\n public:\n  int x = 1;\n" + function("void F()", limit + 2, "  ") + "};\n"
        self.write("base/a.cc", in_class)
        self.assert_finds("sizes", "base/a.cc:4: a function")
        # A long table or class is not a long function.
        self.write("base/a.cc", "const int table[] = {\n" + "  1,\n" * 90 + "};\n\nstruct S {\n" + "  int a;\n" * 90 + "};\n")
        self.assert_finds("sizes")

    def test_unfinished_work_machine_paths_and_registry_hosts_are_found(self):
        self.write("base/good.cc", '// Todo lists are fine. $root/bin, a/root/b, /rooted, https://example.org\n')
        self.assert_finds("words")
        self.write("base/bad.cc", "// TO" + "DO: later\n// /wo" + "rk/x\n\n// see deb" + ".debian.org\n")
        self.write("docs/bad.md", "FIX" + "ME\n")
        self.write("base/old.cc", "absl::HexStringTo" + "Bytes(text);\n")
        self.assert_finds("words", "base/bad.cc:1", "base/bad.cc:2", "base/bad.cc:4", "base/old.cc:1", "docs/bad.md:1")

    def test_a_merge_that_was_left_half_done_is_found(self):
        self.write("docs/good.md", "A title\n=======\n")
        self.write("docs/merged.md", "<" * 7 + " HEAD\none\n=======\nother\n" + ">" * 7 + " branch\n")
        self.assert_finds("words", "docs/merged.md:1", "docs/merged.md:5")

    def test_a_test_that_fixes_the_accelerator_of_its_qemu_is_found(self):
        self.write("tests/a.cc", 'config.accelerator = TestAccelerator();\nauto vm = StartQemu(config);\n')
        self.write("tests/b.cc", 'EXPECT_EQ(ChooseAccelerator("tcg")->name, "tcg");\n')
        self.write("session/c.cc", 'auto vm = StartQemu({.accelerator = "tcg"});\n')
        self.assert_finds("accelerators")
        self.write("tests/bad.cc", 'config.accelerator = "tcg";\nauto vm = session::StartQemuWith(options, config);\n')
        self.assert_finds("accelerators", "tests/bad.cc:1")

    def test_headers_without_purpose_orphans_and_dead_links_are_found(self):
        self.write("base/CMakeLists.txt", "still_library(x SRCS good.cc DEPS y)\n")
        self.write("base/good.cc", "")
        self.write("base/good.h", HEADER)
        self.write("docs/good.md", "[a](../base/good.h) [b](https://example.org/x) [c](#here)\n| x | `a_test`: A.B, C.test_d |\n")
        self.write("tests/a.cc", "TEST_F(A, B) {\n")
        self.write("tests/CMakeLists.txt", "still_test(a_test SRCS a.cc)\n")
        self.write("tests/c.py", "class C(TestCase):\n    def test_d(self):\n        pass\n")
        self.assert_finds("files")
        self.write("base/bad.cc", "")
        self.write("base/bad.h", "int a;\n")
        self.write("docs/bad.md", "text\n[a](missing.md#part)\n| x | `a_test`: A.B, A.test_d |\n")
        self.assert_finds("files", "base/bad.cc:1", "base/bad.h:1", "base/bad.h:1", "docs/bad.md:2", "docs/bad.md:3")

    def test_a_package_without_a_reason_named_twice_or_of_one_version_is_found(self):
        self.write("tools/packages/build", "# Packages.\ncmake  # build\ng++    # build\nlibcurl4-openssl-dev  # HTTP\n")
        self.assert_finds("packages")
        self.write("tools/packages/test", "cmake  # again\nninja\nlibclang-rt-14-dev  # fuzzing\nclang-14  # fuzzing\n")
        self.assert_finds("packages", "packages/test:1", "packages/test:2", "packages/test:3", "packages/test:4")

    def test_scripts_that_shellcheck_or_python_dislikes_are_found(self):
        self.write("tools/good", '#!/usr/bin/env bash\necho "$1"\n')
        self.write("tools/good.py", "print(1)\n")
        self.assert_finds("scripts")
        self.write("tools/bad", "#!/usr/bin/env bash\nrm $1\n")
        self.write("tools/bad.py", "print(\n")
        self.assert_finds("scripts", "tools/bad:2", "tools/bad.py:1")

    def test_what_was_built_is_not_looked_at(self):
        self.write("build/base/bad.cc", "// TO" + "DO\n")
        self.write(".git", "gitdir: /ro" + "ot/x\n")
        self.assert_finds("words")


if __name__ == "__main__":
    unittest.main()
