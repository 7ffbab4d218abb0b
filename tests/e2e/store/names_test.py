"""Names and bytes: what a file system or a person can name is taken as bytes or refused with the reason."""

import json
import os
import shutil
import subprocess
import unittest

from repository_case import BUSY, MIB, MISSING, STATE, USAGE, RepositoryCase


class FileNames(RepositoryCase):
    def test_a_name_that_is_no_utf8_is_stored_escaped_and_found_by_it(self):
        content = self.disk(b"caf\xe9.img")
        stored = self.run_still("import", content, "--name", "one")
        self.assertEqual(stored["session"], "caf\\xe9.img")
        self.store("other.img", "two")
        self.assertEqual(self.names(), ["one", "two"])
        self.assertEqual(self.names("caf\\xe9.img"), ["one"])
        self.assertEqual(self.run_still("show", "caf\\xe9.img@latest")["id"], stored["id"])
        self.assertTrue(self.run_still("verify", "--read-data")["ok"])
        self.run_still("repair", "catalog")
        back = os.fsencode(self.folder) + b"/zur\xfcck"
        self.run_still("export", "one", back)
        with open(back, "rb") as written, open(content, "rb") as given:
            self.assertEqual(written.read(), given.read())
        self.run_still("forget", "one")
        self.assertEqual(self.names(), ["two"])

    def test_a_path_that_is_no_utf8_is_told_so_that_it_can_be_found(self):
        odd = os.fsencode(self.folder) + b"/zur\xfcck"
        told = lambda suffix: f"{self.folder}/zur\\xfcck{suffix}"
        self.assertEqual(self.run_still("--repo", odd, "init")["repository"], told(""))
        self.assertEqual(self.run_still("--repo", odd, "stats")["repository"], told(""))
        self.store("disk.img", "one")
        self.assertEqual(self.run_still("export", "one", odd + b".img")["path"], told(".img"))
        self.assertEqual(self.run_still("export", "one", odd + b".d", "--chain")["path"], told(".d"))
        self.assertEqual(self.run_still("export", "one", f"{self.folder}/a\\xe9")["path"], f"{self.folder}/a\\x5cxe9")

    @unittest.skipUnless(os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK) and shutil.which("nbdfuse"),
                         "the kernel mounts for root, and FUSE")
    def test_a_directory_that_is_no_utf8_is_mounted_on_and_free_again(self):
        image = self.disk(size=16 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        self.run_still("import", image, "--name", "one")
        place = os.fsencode(self.folder) + b"/zur\xfcck"
        os.mkdir(place)
        told = f"{self.folder}/zur\\xfcck"
        mounted = self.start("--json", "mount", "one", place)
        if mounted.returncode != 0:
            self.skipTest(f"nothing can be mounted here: {mounted.stderr}")
        self.assertEqual(json.loads(mounted.stdout)["target"], told)
        self.assertIn(b"lost+found", os.listdir(place))
        self.assertEqual(self.run_still("umount", place), {"unmounted": told})
        self.assertEqual(os.listdir(place), [])
        self.assertEqual(os.listdir(self.folder / "state/mounts"), [])

    def test_what_people_give_is_refused_with_the_reason(self):
        image = self.disk()
        for name, why in ((b"caf\xe9", "not UTF-8"), ("latest", "means the newest"), ("a:b", "no reference could reach it"),
                          ("web@2d", "no reference could reach it"), ("a/b", "no reference could reach it"),
                          ("-x", "taken for an option"), ("n*", "no reference could reach it"), ("a\nb", "control characters"),
                          ("0" * 32, "looks like an id"), ("n" * 300, "longer than 255")):
            argument = b"--name=" + (name if isinstance(name, bytes) else name.encode())
            self.refused(USAGE, why, "import", image, argument)
        for label, why in ((b"k=\xff", "not UTF-8"), ("=v", "write it like key=value"), ("k=a\nb", "control characters")):
            self.refused(USAGE, why, "import", image, "--label", label)
        self.refused(USAGE, "given twice", "import", image, "--label", "k=1", "--label", "k=2")
        self.assertEqual(self.run_still("list"), [])

    def test_a_file_that_no_reference_could_reach_is_told_how(self):
        for name in ("latest", "a:b.img", "x@2d"):
            self.refused(USAGE, "--session NAME", "import", self.disk(name))
            self.assertEqual(self.run_still("import", self.disk(name), "--session", "web")["session"], "web")

    def test_machines_schedules_and_their_commands_have_names_that_can_be_stored(self):
        disk = self.disk(size=1024 * 1024)
        self.refused(USAGE, "means the newest", "run", "latest", "--disk", disk)
        odd = self.disk(b"\xff.img")
        self.refused(USAGE, "its path is not UTF-8", "run", "web", "--disk", odd)
        self.refused(USAGE, "means the newest", "schedule", "add", "latest", "--session", "*", "--every", "1h")
        self.refused(USAGE, "not UTF-8", "schedule", "add", "nightly", "--session", "*", "--every", "1h", "--before", b"echo \xff")
        self.refused(USAGE, "not UTF-8", "schedule", "add", "nightly", "--session", b"\xff*", "--every", "1h")
        self.refused(USAGE, "not UTF-8", "hold", "latest", "--reason", b"\xff")
        self.refused(USAGE, "not UTF-8", "--state", os.fsencode(self.folder) + b"/\xff", "ps")
        self.assertEqual(self.run_still("schedule", "list")["schedules"], [])


class Keys(RepositoryCase):
    def test_keys_are_removed_by_rm_and_for_now_by_its_old_name(self):
        added = [self.run_still("key", "add", environment=self.environment | {"STILL_NEW_PASSPHRASE": word})["key"]
                 for word in ("a", "b", "c")]
        self.run_still("key", "rm", *added[:2])
        self.assertEqual(self.stderr, "")
        self.run_still("key", "remove", added[2])
        self.assertIn("write key rm instead of key remove", self.stderr)
        self.assertEqual(len(self.run_still("key", "list")), 1)


class OtherHosts(RepositoryCase):
    """Two hosts that are called alike, with a machine `web` each, in one repository."""

    encrypted = False

    def setUp(self):
        super().setUp()
        self.environment["STILL_REPO"] = str(self.repository)
        ours = self.environment
        theirs = ours | {"STILL_STATE": f"{self.folder}/other-state", "STILL_CACHE_DIR": f"{self.folder}/other-cache"}
        for environment, names in ((ours, ("nightly-1", "nightly-2")), (theirs, ("nightly-3", "nightly-4", "night-5"))):
            self.environment = environment
            for name in names:
                self.store("web", name)
        self.store("db", "db-1")
        self.environment = ours
        self.other = (self.folder / "other-state/host-id").read_text().strip()

    def dropped(self, *words):
        said = self.run_still("forget", *words, "--dry-run")
        return {decision["name"] for decision in said["decisions"] if not decision["keep"]}

    def test_a_machine_is_one_of_this_host_unless_another_is_named(self):
        keep = ("--keep", "last=1")
        self.assertEqual(self.dropped("--session", "web", *keep), {"nightly-1"})
        self.assertEqual(self.dropped("--session", "w*", *keep), {"nightly-1"})
        self.assertEqual(self.dropped(*keep), {"nightly-1"})
        theirs = {"nightly-3", "nightly-4"}
        self.assertEqual(self.dropped("--session", f"{self.other}/web", *keep), theirs)
        self.assertEqual(self.dropped("--session", f"{self.other[:12]}/*", "--session", "web", *keep), theirs | {"nightly-1"})
        self.assertEqual(self.dropped("--session", "*/web", *keep), theirs | {"nightly-1"})
        name = self.run_still("show", "night-5")["host"]
        self.refused(STATE, "several hosts are called so", "forget", "--session", f"{name}/web", *keep)
        self.refused(MISSING, "of others, write HOST/db: ", "forget", "--session", "db", *keep)
        self.refused(MISSING, "no snapshot of this host fits", "forget", "--session", "x*", *keep)
        self.assertEqual(self.run_still("forget", *keep)["of_other_hosts"], 4)
        self.assertEqual(self.names(), ["nightly-2", "nightly-3", "nightly-4", "night-5", "db-1"])

    def test_a_pattern_of_names_too(self):
        self.refused(MISSING, "of others, write HOST/db-*: ", "show", "db-*")
        self.assertEqual([one["name"] for one in self.run_still("show", f"{self.other}/db-*")], ["db-1"])
        self.run_still("forget", "night*")
        self.assertEqual(self.names(), ["nightly-3", "nightly-4", "night-5", "db-1"])
        self.run_still("forget", "nightly-3")
        self.run_still("forget", "*/night*")
        self.assertEqual(self.names(), ["db-1"])


class OneGrammar(RepositoryCase):
    encrypted = False

    def setUp(self):
        super().setUp()
        for name in ("n-1", "n-2", "n-3"):
            self.store("web.img", name, "tier=gold", f"run={name}")
        self.store("db.img", "db-1", "tier=silver")

    def test_retention_is_said_to_forget_as_it_is_to_schedules(self):
        said = self.run_still("forget", "--keep", "last=2 label=tier=silver", "--dry-run")
        self.assertEqual({d["name"]: d["keep"] for d in said["decisions"]},
                         {"n-1": False, "n-2": True, "n-3": True, "db-1": True})
        self.assertEqual(self.stderr, "")
        old = self.run_still("forget", "--keep-last", "2", "--keep-label", "tier=silver", "--dry-run")
        self.assertEqual(old["decisions"], said["decisions"])
        self.assertIn("write --keep last=2 instead of --keep-last 2", self.stderr)
        within = self.run_still("forget", "--keep-last", "1", "--keep-within", "1h", "--dry-run")
        self.assertTrue(all(decision["keep"] for decision in within["decisions"]))
        self.assertIn("--keep min-age=1h", self.stderr)
        self.refused(USAGE, "no such rule", "forget", "--keep", "lately=3")
        self.run_still("forget", "--keep", "last=1", "--keep", "daily=1", "--session", "web.img")
        self.assertEqual(self.names(), ["n-3", "db-1"])

    def test_lists_are_narrowed_by_names_patterns_and_labels(self):
        self.assertEqual(self.names("web.img"), ["n-1", "n-2", "n-3"])
        self.assertEqual(self.names("w*", "db.img"), ["n-1", "n-2", "n-3", "db-1"])
        self.assertEqual(self.names("--label", "tier=gold", "--label", "run=n-2"), ["n-2"])
        self.assertEqual(self.names("--label", "run"), ["n-1", "n-2", "n-3"])
        self.assertEqual(self.names("d*", "--label", "tier=gold"), [])

    def test_several_names_and_patterns_are_taken_where_one_is(self):
        self.assertEqual([one["name"] for one in self.run_still("show", "db-1", "n-*")], ["db-1", "n-1", "n-2", "n-3"])
        self.assertEqual(self.run_still("show", "db-1")["name"], "db-1")
        self.refused(MISSING, "no snapshot of this host fits", "show", "x*")
        self.assertEqual(len(self.run_still("hold", "n-*", "--reason", "audit")), 3)
        self.run_still("forget", "n-1", "n-2", code=STATE)
        self.run_still("release", "n-1", "n-2", "n-3")
        self.run_still("forget", "n-[12]", code=MISSING)
        self.run_still("forget", "n-?", "db-1")
        self.assertEqual(self.names(), [])

    def test_schedules_too(self):
        for name, tier in (("nightly-web", "gold"), ("nightly-db", "silver"), ("hourly", "gold")):
            self.run_still("schedule", "add", name, "--session", "*", "--every", "1h", "--label", f"tier={tier}")
        listed = lambda *words: [one["schedule"]["name"] for one in self.run_still("schedule", "list", *words)["schedules"]]
        self.assertEqual(sorted(listed("--label", "tier=gold")), ["hourly", "nightly-web"])
        self.assertEqual(sorted(listed("nightly-*")), ["nightly-db", "nightly-web"])
        self.assertEqual(len(self.run_still("schedule", "pause", "nightly-*")), 2)
        self.assertEqual([one["schedule"]["paused"] for one in self.run_still("schedule", "show", "nightly-*", "hourly")],
                         [True, True, False])
        one = self.run_still("schedule", "preview", "hourly", "--for", "2d")
        self.assertEqual({"point_unix_ns", "snapshot", "kept", "reasons"}, set(one[0]))
        several = self.run_still("schedule", "preview", "nightly-*", "hourly", "--for", "2d", "--session", "web", "--session", "db")
        self.assertEqual([(ahead["schedule"], ahead["session"]) for ahead in several],
                         [(name, session) for name in ("nightly-db", "nightly-web", "hourly") for session in ("web", "db")])
        self.assertEqual(len(several[-1]["snapshots"]), len(one))
        self.refused(MISSING, "no session of schedule hourly fits", "schedule", "preview", "hourly", "--session", "x*")
        self.run_still("schedule", "preview", "hourly", "--days", "2")
        self.assertIn("write --for 2d instead of --days 2", self.stderr)
        self.run_still("schedule", "rm", "nightly-*", "hourly")
        self.assertEqual(listed(), [])
        self.refused(MISSING, "no schedule fits", "schedule", "rm", "nightly-*")

    def end_sessions(self, *names):
        """Sessions that are here and do not run, each with a console."""
        for name in names:
            session = self.folder / "state/sessions" / name
            session.mkdir(parents=True)
            (session / "session.json").write_text(json.dumps({"name": name}))
            (session / "console.log").write_text(f"{name} boots\n")

    def test_several_machines_are_snapshot_and_each_that_failed_is_named(self):
        self.end_sessions("web-1", "web-2", "db")
        self.refused(BUSY, "web-1: ", "snapshot", "nosuch", "web-*", "--disk-only")
        for name in ("nosuch: ", "web-2: "):
            self.assertIn(name, self.stderr)
        self.assertNotIn("db: ", self.stderr)
        self.refused(USAGE, "a repository has each name once", "snapshot", "web-*", "--name", "one")
        self.refused(USAGE, "--pid is one machine", "snapshot", "a", "b", "--pid", "1", "--disk", "x")
        self.refused(MISSING, "no session fits", "snapshot", "x*")

    def test_several_consoles_are_printed(self):
        self.end_sessions("web-1", "web-2", "db")
        self.assertEqual(self.run_still("logs", "d")["log"], "db boots\n")
        self.assertEqual(self.start("logs", "db").stdout, "db boots\n")
        self.assertEqual([one["name"] for one in self.run_still("logs", "db", "web-*")], ["db", "web-1", "web-2"])
        self.assertEqual(self.start("logs", "web-*").stdout, "==> web-1 <==\nweb-1 boots\n\n==> web-2 <==\nweb-2 boots\n")

    def test_runs_are_found_by_several_names_and_patterns(self):
        self.end_sessions("web-1", "web-2", "db")
        for name in ("nightly-a", "nightly-b", "hourly"):
            self.run_still("schedule", "add", name, "--session", "*", "--every", "1h")
            self.start("schedule", "run-now", name, "--wait")
        found = lambda *words: [(run["schedule"], run["session"]) for run in self.run_still("schedule", "history", *words)["runs"]]
        everything = found()
        self.assertEqual(len(everything), 9)
        self.assertEqual(found("nightly-*"), [run for run in everything if run[0] != "hourly"])
        self.assertEqual(found("nightly-a", "hourly", "--session", "web-?"),
                         [run for run in everything if run[0] != "nightly-b" and run[1] != "db"])
        self.assertEqual(found("nightly-*", "--session", "db", "--session", "web-1", "--limit", "1"),
                         [run for run in everything if run[0] != "hourly" and run[1] != "web-2"][:1])
        self.assertEqual(found("hourly", "--session", "db"), [("hourly", "db")])

    def test_numbers_are_numbers_in_every_answer(self):
        listed = self.run_still("list")[0]
        for value in (listed["images"][0]["size"], listed["point_unix_ns"], listed["drain"]["bytes_stored"], listed["sequence"]):
            self.assertIsInstance(value, int)
        self.assertEqual(listed["images"][0]["size"], 1024 * 1024)
        decided = self.run_still("forget", "--keep", "last=9", "--dry-run")["decisions"][0]
        self.assertEqual(decided["point_unix_ns"], listed["point_unix_ns"])
        self.run_still("schedule", "add", "hourly", "--session", "*", "--every", "1h", "--bandwidth", "50M")
        shown = self.run_still("schedule", "show", "hourly")
        self.assertEqual(shown["schedule"]["bandwidth"], 50 * 1024 * 1024)
        self.assertIsInstance(shown["next_unix_ns"], int)


if __name__ == "__main__":
    unittest.main()
