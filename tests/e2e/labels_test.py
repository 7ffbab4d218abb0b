"""Labels that are true disk by disk: what writes to each disk of a real guest, and who thawed it when."""

import unittest

from still_host import Host, wait_for


class Labels(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.host = Host()
        cls.addClassCleanup(cls.host.close)
        cls.fault = cls.host.directory / "fault"
        disks = [cls.host.disk("data"), cls.host.disk("more")]
        cls.host.boot("web", disks=disks, workload="", STILL_FAULT_FILE=str(cls.fault))
        # The guest mounts every disk that it finds.
        cls.host.guest("web", "sh", "-c", "umount /data2 && mkdir -p /mnt")

    def tearDown(self):
        self.fault.unlink(missing_ok=True)
        self.host.run("exec", "web", "--", "sh", "-c", "kill $(cat /run/other.pid) 2>/dev/null; rm -f /run/other.pid")

    def background(self, script):
        """A shell in the guest that lives on, and is ended by tearDown."""
        self.host.guest("web", "sh", "-c", f"setsid sh -c 'echo $$ > /run/other.pid; {script}' >/dev/null 2>&1 </dev/null &")
        self.host.guest("web", "sh", "-c", "i=0; while [ ! -s /run/other.pid ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done")

    def proofs(self, snapshot):
        return {proof["name"]: proof for proof in snapshot["consistency"]["disks"]}

    def test_a_file_system_that_only_another_namespace_has_mounted_is_frozen_and_listed(self):
        self.background("exec unshare -m sh -c \"mount -t ext4 /dev/vdb /mnt && touch /run/mounted && exec sleep 1000\"")
        self.host.guest("web", "sh", "-c", "i=0; while [ ! -e /run/mounted ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done; rm /run/mounted")
        taken = self.host.json("snapshot", "web", "--disk-only", "--quiesce", "require")
        self.assertEqual(taken["consistency"]["level"], "FILESYSTEM")
        frozen = {mount["mount_point"]: mount for mount in taken["consistency"]["frozen"]}
        self.assertEqual(set(frozen), {"/data", "/mnt"})
        self.assertRegex(frozen["/mnt"]["seen_by"], r"^sleep \(\d+\)$")
        self.assertEqual(self.proofs(taken)["vdb"]["uses"][0]["state"], "frozen")
        shown = self.host.still("show", taken["id"])
        self.assertIn("disk vda: frozen ext4 /data (vda)\n", shown)
        self.assertIn("disk vdb: frozen ext4 /mnt (vdb)\n", shown)
        image = next(image for image in taken["images"] if image["name"] == "vdb")
        self.assertEqual(image["role"], "ROLE_DISK")

    def test_a_disk_that_a_process_has_open_for_writing_is_not_covered(self):
        self.background("exec 3<>/dev/vdb; exec sleep 1000")
        required = self.host.run("snapshot", "web", "--disk-only", "--quiesce", "require")
        self.assertEqual(required.returncode, 5, required.stderr)
        self.assertIn("has it open for writing: vdb", required.stderr)
        tried = self.host.json("snapshot", "web", "--disk-only", "--quiesce", "try")
        self.assertEqual(tried["consistency"]["level"], "CRASH")
        self.assertTrue(self.proofs(tried)["vda"]["covered"])
        self.assertFalse(self.proofs(tried)["vdb"].get("covered", False))
        self.assertRegex(self.host.still("show", tried["id"]), r"disk vdb: not more because sleep \(\d+\) has it open")

    def test_a_thaw_during_the_window_is_refused_and_a_forced_one_costs_the_label(self):
        self.fault.write_text("pause:6000\n")
        process = self.host.start("--json", "snapshot", "web", "--disk-only", "--name", "thawed", "--quiesce", "try")
        wait_for(lambda: self.host.session("web")["agent"]["quiesce_state"] == "FROZEN", "the freeze", 60)
        refused = self.host.run("thaw", "web")
        self.assertEqual(refused.returncode, 5, refused.stderr)
        self.assertIn("--force", refused.stderr)
        self.assertIn("1 file systems thawed", self.host.still("thaw", "web", "--force"))
        _, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, errors)
        shown = self.host.json("show", "thawed")
        self.assertEqual(shown["consistency"]["level"], "CRASH")
        self.assertEqual(shown["consistency"]["thawed_by"], "still thaw")
        self.assertIn("thawed by still thaw, perhaps before the point", shown["consistency"]["downgrades"][0])


if __name__ == "__main__":
    unittest.main()
