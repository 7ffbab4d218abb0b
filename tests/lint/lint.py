#!/usr/bin/env python3
"""The rules of this project that a script can check. Each is one ctest entry with the label lint.

    lint.py CHECK [ROOT]

Prints one line for each finding, "path:line: what", and ends with 1 when there is one. There are no lists of exceptions:
where a rule is wrong, the rule is changed.
"""

import ast
import pathlib
import re
import subprocess
import sys

# Who may include whom: the arrows of the architecture. A folder may always include itself.
ARROWS = {
    "base": set(),
    "store": {"base", "proto"},
    "session": {"base", "proto"},
    "guest-agent": {"base", "proto"},
    "snapshot": {"session", "store", "base", "proto"},
    "schedule": {"snapshot", "session", "store", "base", "proto"},
    "tools": {"schedule", "snapshot", "session", "store", "base", "proto"},
    "tests": {"tools", "schedule", "snapshot", "session", "store", "guest-agent", "base", "proto"},
    "benchmarks": {"snapshot", "session", "store", "base", "proto"},
}
MAX_HEADER_LINES = 200
MAX_SOURCE_LINES = 450
MAX_FUNCTION_LINES = 70
FORMATTER = "14"  # Each version of clang-format has its own view of a few lines.
SKIPPED_EXIT_CODE = 77

# Written so that they do not find themselves.
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b")
CONFLICT = re.compile(r"(?:<{7}|>{7}) ")
MACHINE_PATH = re.compile(r"(?<![\w.$}*])/(?:ro[o]t|wo[r]k|fa[r]m)/\w")
REGISTRY_HOST = re.compile(r"\b(?:de[b]\.debian\.org|security\.de[b]ian\.org|pyp[i]\.org|pythonhoste[d]\.org|npmj[s]\.org|"
                           r"crates\.i[o]|golan[g]\.org)\b")
# What one of the two Debians' libraries warns of, and the other's compiler does not see; and what we have instead.
DEPRECATED_CALLS = {re.compile(r"\babsl::HexStringTo[B]ytes\b"): "BytesFromHex (base/hex.h)"}
# A test that starts QEMU runs under whatever its host has (tests/support/test_accelerator.h).
STARTS_QEMU = re.compile(r"\bStartQemu(?:With)?\(")
FIXED_ACCELERATOR = re.compile(r'"(?:tcg|kvm)"')
# What other headers happen to bring on one Debian and not on the other.
HEADERS_OF_CALLS = {
    "absl/strings/match.h": re.compile(r"\babsl::(?:StrContains|StartsWith|EndsWith|EqualsIgnoreCase)\b"),
    "absl/strings/str_cat.h": re.compile(r"\babsl::(?:StrCat|StrAppend)\b"),
    "absl/strings/str_join.h": re.compile(r"\babsl::StrJoin\b"),
    "absl/strings/str_split.h": re.compile(r"\babsl::StrSplit\b"),
    "absl/strings/strip.h": re.compile(r"\babsl::(?:Consume|Strip)(?:Prefix|Suffix)\b"),
}

TEXT_SUFFIXES = {".cc", ".h", ".py", ".sh", ".md", ".txt", ".cmake", ".proto", ".json", ".yml", ".sql", ""}
SKIPPED = {"build", ".git", "__pycache__"}


def walk(root):
    """All files of the project, without what was built."""
    for path in sorted(root.iterdir()):
        if path.is_symlink() or path.name in SKIPPED:
            continue
        if path.is_dir():
            yield from walk(path)
        elif path.is_file():
            yield path


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def cxx_files(root):
    return [path for path in walk(root) if path.suffix in {".cc", ".h"}]


def text_files(root):
    """Everything that people write; not the corpora of fuzzers and other binary files."""
    for path in walk(root):
        if path.suffix in TEXT_SUFFIXES and b"\0" not in path.read_bytes():
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            yield path


def shell_scripts(root):
    return [path for path in text_files(root) if re.match(r"#!.*\b(?:ba)?sh\b", (lines_of(path) or [""])[0])]


def missing_headers(path):
    """The headers of what a file calls that neither it nor its own header includes."""
    text = path.read_text(encoding="utf-8")
    own = path.with_suffix(".h")
    included = text + (own.read_text(encoding="utf-8") if path.suffix == ".cc" and own.exists() else "")
    for header, call in HEADERS_OF_CALLS.items():
        if call.search(text) and f'#include "{header}"' not in included:
            yield header


def check_includes(root):
    """Arrows between folders are kept, includes are written from the project's root, and what is called is included."""
    for path in cxx_files(root):
        here = path.relative_to(root)
        yield from (f"{here}:1: include {header}" for header in missing_headers(path))
        folder = here.parts[0]
        for number, line in enumerate(lines_of(path), 1):
            match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if not match:
                continue
            target = match[1]
            first = target.split("/")[0]
            where = f"{here}:{number}"
            if ".." in target.split("/") or (path.parent / target).exists() and path.parent != root:
                yield f"{where}: write {target} from the project's root"
            elif first in ARROWS or first == "proto":
                if first != folder and first not in ARROWS.get(folder, set()):
                    yield f"{where}: {folder} may not include {target}"
                if not (root / target).exists() and not re.fullmatch(r"proto/\w+(\.grpc)?\.pb\.h", target):
                    yield f"{where}: there is no {target}"


def check_format(root):
    """clang-format would change nothing."""
    files = [str(path) for path in cxx_files(root)]
    if not files:
        return
    result = subprocess.run(["clang-format", "--dry-run", *files], capture_output=True, text=True, check=False)
    first_lines = {}
    for path, line in re.findall(r"^(.*?):(\d+):\d+: warning: ", result.stderr, re.MULTILINE):
        first_lines.setdefault(path, line)
    for path, line in first_lines.items():
        yield f"{pathlib.Path(path).relative_to(root)}:{line}: tools/dev fmt would change this file"
    if result.returncode != 0:
        yield f"clang-format: exit code {result.returncode}: {result.stderr.strip()}"


def function_lengths(lines):
    """(first line, number of lines) of each function body's lines, found by the indentation that clang-format gives."""
    return list(blocks_at(list(enumerate(lines, 1)), 0))


def blocks_at(lines, indent):
    """The functions among items that begin at this indentation; looks into classes, not into functions."""
    item = []
    for number, line in lines:
        text = line.strip()
        at = len(line) - len(line.lstrip())
        if not item:
            if at != indent or not text or text.startswith(("//", "#", "}", "namespace ", "extern \"C\" {")):
                continue
        item.append((number, line))
        closes = at == indent and text.startswith("}")
        if not closes and not (text.endswith(";") and not opens_block(item)):
            continue
        head = " ".join(entry.strip() for _, entry in item).split("{")[0]
        if re.match(r"(template <.*> )?(class|struct|union)\b[^()]*$", head):
            yield from blocks_at(item[1:-1], indent + 2)
        elif closes and "(" in head and not head.startswith("enum"):
            yield item[0][0], len(item)
        item = []


def opens_block(item):
    """A block is open: some line so far ended with a brace that nothing at its level has closed."""
    return any(line.rstrip().endswith("{") for _, line in item)


def check_sizes(root):
    """Headers, sources and functions stay short enough to be read at one go."""
    for path in cxx_files(root):
        here = path.relative_to(root)
        lines = lines_of(path)
        limit = MAX_HEADER_LINES if path.suffix == ".h" else MAX_SOURCE_LINES
        if len(lines) > limit:
            yield f"{here}:1: {len(lines)} lines; {limit} is the limit"
        for first, length in function_lengths(lines):
            if length > MAX_FUNCTION_LINES:
                yield f"{here}:{first}: a function of {length} lines; {MAX_FUNCTION_LINES} is the limit"


def check_accelerators(root):
    """No test that starts QEMU fixes what its guests run under."""
    for path in cxx_files(root):
        here = path.relative_to(root)
        if here.parts[0] == "tests" and STARTS_QEMU.search(path.read_text(encoding="utf-8")):
            for number, line in enumerate(lines_of(path), 1):
                if FIXED_ACCELERATOR.search(line):
                    yield f"{here}:{number}: use TestAccelerator()"


def check_words(root):
    """Nothing unfinished, nothing of one machine, one network or one release of a library."""
    for path in text_files(root):
        for number, line in enumerate(lines_of(path), 1):
            where = f"{path.relative_to(root)}:{number}"
            if UNFINISHED.search(line):
                yield f"{where}: finish it, or open an issue"
            if CONFLICT.match(line):
                yield f"{where}: two sides of a merge: make them one"
            if MACHINE_PATH.search(line):
                yield f"{where}: a path of one machine"
            if REGISTRY_HOST.search(line):
                yield f"{where}: a registry's host name; the machine's own configuration knows it"
            for call, instead in DEPRECATED_CALLS.items():
                if call.search(line):
                    yield f"{where}: deprecated on Debian 13; use {instead}"


def named_cases(line):
    """What a document's line names as `program`: Class.case, Class.case."""
    for names in re.findall(r"`\w+`: ((?:\w+\.\w+)(?:, \w+\.\w+)*)", line):
        yield from names.split(", ")


def test_cases(root):
    """Of GoogleTest, and of unittest."""
    for path in walk(root):
        if path.suffix == ".cc":
            for suite, case in re.findall(r"^TEST(?:_F|_P)?\((\w+), (\w+)\)", path.read_text(encoding="utf-8"), re.MULTILINE):
                yield f"{suite}.{case}"
        elif path.suffix == ".py":
            suite = ""
            for kind, name in re.findall(r"^(class| +def) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
                suite = name if kind == "class" else suite
                if kind != "class":
                    yield f"{suite}.{name}"


def check_files(root):
    """Headers open with what they own; every source is built; links in documents lead somewhere, and tests that they name exist."""
    lists = "\n".join(path.read_text(encoding="utf-8") for path in walk(root)
                      if path.name == "CMakeLists.txt" or path.suffix == ".cmake")
    cases = set(test_cases(root))
    for path in walk(root):
        here = path.relative_to(root)
        if path.suffix == ".h":
            lines = lines_of(path)
            if not lines or not lines[0].startswith("// "):
                yield f"{here}:1: a header opens with what it owns"
            if "#pragma once" not in lines:
                yield f"{here}:1: no #pragma once"
        elif path.suffix == ".cc" and not re.search(rf"(?<![\w-]){re.escape(path.name)}\b", lists):
            yield f"{here}:1: not built by any CMakeLists.txt"
        elif path.suffix == ".md":
            for number, line in enumerate(lines_of(path), 1):
                for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", line):
                    if "://" not in target and not (path.parent / target).exists():
                        yield f"{here}:{number}: {target} does not exist"
                for case in named_cases(line):
                    if case not in cases:
                        yield f"{here}:{number}: there is no test {case}"


def check_packages(root):
    """tools/packages/*: one package a line, each with its reason, in one of the files only, and none with a version in its name."""
    seen = set()
    for path in sorted((root / "tools/packages").iterdir()):
        for number, line in enumerate(lines_of(path), 1):
            where = f"{path.relative_to(root)}:{number}"
            if line.startswith("#"):
                continue
            match = re.fullmatch(r"([a-z0-9][a-z0-9.+-]+) +# (\S.*)", line)
            if not match:
                yield f"{where}: not 'package  # reason'"
            elif match[1] in seen:
                yield f"{where}: {match[1]} again"
            elif re.search(r"-\d+(\.\d+)?(-|$)", match[1]):
                yield f"{where}: {match[1]}: another Debian has another version"
            else:
                seen.add(match[1])


def check_scripts(root):
    """shellcheck has nothing to say, and Python can be parsed."""
    scripts = [str(path) for path in shell_scripts(root)]
    if scripts:
        result = subprocess.run(["shellcheck", "--format=gcc", *scripts], capture_output=True, text=True, check=False)
        for line in result.stdout.splitlines():
            yield line.removeprefix(f"{root}/")
        if result.returncode > 1:
            yield f"shellcheck: exit code {result.returncode}: {result.stderr.strip()}"
    for path in walk(root):
        if path.suffix == ".py":
            try:
                ast.parse(path.read_text(encoding="utf-8"))
            except SyntaxError as error:
                yield f"{path.relative_to(root)}:{error.lineno}: {error.msg}"


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def other_clang_format():
    """Its version where it formats otherwise than Debian 12's, of which the project's format is; else nothing."""
    said = subprocess.run(["clang-format", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\d+)", said)
    return version[1] if version and version[1] != FORMATTER else ""


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in CHECKS:
        print(f"usage: lint.py {'|'.join(CHECKS)} [ROOT]", file=sys.stderr)
        return 2
    root = pathlib.Path(sys.argv[2] if len(sys.argv) == 3 else pathlib.Path(__file__).parents[2]).resolve()
    if sys.argv[1] == "format" and len(sys.argv) == 2 and (version := other_clang_format()):
        print(f"skipped: lint_format: clang-format {version} formats otherwise than {FORMATTER}, which is Debian 12's")
        return SKIPPED_EXIT_CODE
    findings = list(CHECKS[sys.argv[1]](root))
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
