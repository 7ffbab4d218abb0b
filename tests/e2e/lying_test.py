"""Guests that lie: who may become the agent, names that are no names, and a network that looks for its host."""

import http.server
import json
import re
import socket
import threading
import unittest

from still_host import BUILD, Host, wait_for

PASSWD = "root:x:0:0::/:/bin/sh\\nnobody:x:65534:65534::/:/bin/sh\\n"


class Impostor(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.host = Host()
        cls.addClassCleanup(cls.host.close)
        cls.host.boot("web", "--net", workload="")
        cls.in_guest(f"printf '{PASSWD}' >/etc/passwd; chmod 755 /; chmod 1777 /tmp")

    @classmethod
    def in_guest(cls, script):
        return cls.host.guest("web", "sh", "-c", script)

    def snapshot(self):
        return self.host.json("snapshot", "web", "--disk-only", "--quiesce", "require")

    def session_log(self):
        return self.host.still("logs", "web", "--session-log")

    def test_an_unprivileged_process_does_not_become_the_agent(self):
        before = self.session_log().count("guest agent connected")
        # A copy of the agent, of an ordinary user, which dials again and again.
        self.in_guest("setsid su -s /bin/sh nobody -c 'exec still-agent --no-guardian --marker /tmp/frozen' "
                      "</dev/null >/tmp/impostor.log 2>&1 & echo $! >/tmp/impostor.pid")
        self.addCleanup(self.in_guest, "kill -9 $(cat /tmp/impostor.pid)")
        wait_for(lambda: "unprivileged port" in self.session_log(), "the impostor to be turned away", 60)
        self.assertIn("connection ended", self.in_guest("cat /tmp/impostor.log"), "it was connected, and no more")
        for _ in range(5):
            self.assertEqual(self.in_guest("id -u").strip(), "0")
        self.assertEqual(self.snapshot()["consistency"]["level"], "FILESYSTEM")
        self.assertEqual(self.session_log().count("guest agent connected"), before, "nobody took the agent's place")
        self.assertIn("nobody", self.in_guest("ps -o user,args | grep [s]till-agent"), "it still tries")

    def test_a_second_privileged_agent_does_not_displace_the_first(self):
        before = self.session_log().count("guest agent connected")
        self.in_guest("setsid still-agent --no-guardian --marker /tmp/second </dev/null >/tmp/second.log 2>&1 & echo $! >/tmp/second.pid")
        self.addCleanup(self.in_guest, "kill -9 $(cat /tmp/second.pid) || true")
        wait_for(lambda: "connection ended" in self.in_guest("cat /tmp/second.log"), "the second one to be turned away", 60)
        self.assertEqual(self.session_log().count("guest agent connected"), before)
        self.assertEqual(self.snapshot()["consistency"]["level"], "FILESYSTEM")

    def test_a_mount_at_a_path_that_is_no_utf8_costs_nothing(self):
        self.in_guest(r"""path=$(printf '/tmp/\377\376\033[31m'); mkdir "$path"; mount -t tmpfs none "$path" """)
        self.addCleanup(self.in_guest, r"""path=$(printf '/tmp/\377\376\033[31m'); umount "$path" """)
        taken = self.snapshot()
        self.assertEqual(taken["consistency"]["level"], "FILESYSTEM")
        mounts = [mount["mount_point"] for mount in taken["consistency"]["skipped"]]
        self.assertIn(r"/tmp/\xff\xfe\x1b[31m", mounts)
        self.assertNotIn("\x1b", self.host.still("show", taken["id"]))

    def test_a_host_name_that_drives_terminals_is_shown_as_text(self):
        self.in_guest(r"hostname $(printf '\033]0;owned\007\377')")
        self.addCleanup(self.in_guest, "hostname web")
        self.host.run("exec", "web", "--", "killall", "-9", "still-agent")  # It says its name when it dials.
        name = wait_for(lambda: (self.host.session("web") or {}).get("agent", {}).get("hostname"), "the agent", 60)
        self.assertEqual(name, r"\x1b]0;owned\x07\xff")
        self.assertNotIn("\x1b", self.host.still("ps"))
        self.assertNotIn("\x1b", self.session_log())

    def test_the_network_does_not_lead_to_the_hosts_loopback(self):
        reached = []

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                reached.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"page\n")

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Page)
        self.addCleanup(server.server_close)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.shutdown)
        port = server.server_address[1]
        self.in_guest("modprobe virtio_net; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; "
                      "ip route add default via 10.0.2.2")

        def fetch(address):
            return self.in_guest(f"timeout 20 wget -q -O - http://{address}:{port}/{address} 2>&1 || true")

        # The gateway and the name server, which stand for the host.
        for address in ("10.0.2.2", "10.0.2.3"):
            self.assertNotIn("page", fetch(address), address)
        self.assertEqual(reached, [])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.99", 9))  # Nothing is sent: this asks for the route.
            except OSError:
                self.skipTest("this host has no network, so nothing shows that the guest has one")
            own = probe.getsockname()[0]
        self.assertIn("page", fetch(own), "the network works, and other addresses of the host are a neighbour's")


class Liar(unittest.TestCase):
    """A guest whose agent lies in every field of every answer."""

    BAD = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202e\ufffd]")

    @classmethod
    def setUpClass(cls):
        cls.host = Host()
        cls.addClassCleanup(cls.host.close)
        # `exec` has no input: the program comes as a disk.
        program = (BUILD / "guest-programs/lying-agent").read_bytes()
        disk = cls.host.directory / "liar.raw"
        disk.write_bytes(program.ljust(16 << 20, b"\0"))
        cls.host.boot("web", disks=[cls.host.disk(mib=64), disk], workload="")
        cls.host.guest("web", "sh", "-c", f"head -c {len(program)} /dev/vdb >/liar && chmod +x /liar")
        before = cls.host.still("logs", "web", "--session-log").count("guest agent connected")
        # Its place in the file system is what init starts again.
        cls.host.run("exec", "web", "--", "sh", "-c", "mv /liar $(command -v still-agent) && killall -9 still-agent")
        wait_for(lambda: cls.host.still("logs", "web", "--session-log").count("guest agent connected") > before, "the liar", 120)

    def assert_clean(self, text):
        self.assertIsNone(self.BAD.search(text), text[:1000])
        self.assertLess(max(map(len, text.splitlines()), default=0), 100_000)

    def test_what_it_says_is_shown_and_harms_nobody(self):
        self.assert_clean(self.host.still("ps"))
        self.assertIn("owned", json.dumps(self.host.session("web")), "it is shown, as text")

    def test_a_snapshot_ends_claims_nothing_and_leaves_the_guest_running(self):
        refused = self.host.run("snapshot", "web", "--quiesce", "require")
        self.assertNotEqual(refused.returncode, 0, refused.stdout)
        self.assert_clean(refused.stdout + refused.stderr)
        taken = self.host.json("snapshot", "web", "--name", "lied")
        self.assertEqual(taken["consistency"]["level"], "CRASH")
        for words in (("show", "lied"), ("list",), ("thaw", "web")):
            result = self.host.run(*words)
            self.assert_clean(result.stdout + result.stderr)
        self.assertEqual(self.host.session("web")["status"], "running")
        drill = self.host.run("drill", "lied")
        self.assert_clean(drill.stdout + drill.stderr)

    def test_its_words_do_not_fill_the_session_log(self):
        log = self.host.still("logs", "web", "--session-log")
        self.assert_clean(log)
        self.assertLess(len(log), 1 << 20)


if __name__ == "__main__":
    unittest.main(verbosity=2)
