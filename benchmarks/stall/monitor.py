"""A second QMP monitor on a session's QEMU, for what Stillpoint is compared with.

STILL_QEMU names a script (write_wrapper) that starts the real QEMU with one more socket.
"""

import array
import json
import os
import socket
import subprocess
import time

PATIENCE = 120


def write_wrapper(path, monitor, options=""):
    # Of busybox-static, which no LD_PRELOAD reaches: the user-space vsock is loaded into QEMU and into nothing before it.
    path.write_text(f'#!/bin/busybox sh\nexec qemu-system-x86_64 "$@" -qmp unix:{monitor},server=on,wait=off {options}\n')
    path.chmod(0o755)


class Monitor:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.pending = b""
        self.events = []
        self.receive()  # The greeting.
        self.execute("qmp_capabilities")

    def close(self):
        self.socket.close()

    def receive(self):
        while b"\n" not in self.pending:
            part = self.socket.recv(1 << 16)
            if not part:
                raise EOFError("QEMU has closed its monitor")
            self.pending += part
        line, self.pending = self.pending.split(b"\n", 1)
        return json.loads(line)

    def execute(self, command, fd=None, **arguments):
        message = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        passed = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self.socket.sendmsg([message], passed)
        while True:
            answer = self.receive()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def wait(self, name, accept=lambda data: True):
        """The event, once it has come; its time in seconds."""
        while True:
            for index, event in enumerate(self.events):
                if event["event"] == name and accept(event.get("data", {})):
                    del self.events[: index + 1]
                    stamp = event["timestamp"]
                    return stamp["seconds"] + stamp["microseconds"] / 1e6
            self.events.append(self.receive())

    def stamps(self):
        """When the last STOP, RESUME and end of a migration were, by QEMU's clock (the host's), in seconds."""
        self.execute("query-status")  # Events come before the answer.
        found = {}
        for event in self.events:
            if event["event"] != "MIGRATION" or event["data"]["status"] == "completed":
                stamp = event["timestamp"]
                found[event["event"]] = stamp["seconds"] + stamp["microseconds"] / 1e6
        self.events.clear()
        return found

    def write_disk(self, device, offset, source):
        """As the guest would, through its own device: what is in the file `source`."""
        write = f"write -s {source} {offset} {source.stat().st_size}"
        command = f'qemu-io -d /machine/peripheral/{device}/virtio-backend "{write}"'
        said = self.execute("human-monitor-command", **{"command-line": command})
        if said.strip():
            raise RuntimeError(f"{command}: {said.strip()}")

    def background(self, on):
        self.execute(
            "migrate-set-capabilities",
            capabilities=[
                {"capability": "background-snapshot", "state": on},
                {"capability": "x-ignore-shared", "state": False},  # The memory engine's.
                {"capability": "events", "state": True},
            ],
        )
        self.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})

    def migrate_to(self, fd):
        self.execute("getfd", fd=fd, fdname="bench")
        # The migration before may be complete and not quite gone: "duplicate yank instance".
        self.insist("yank", "migrate", uri="fd:bench")

    def cont(self):
        self.insist("finalized", "cont")  # "Migration is not finalized yet".

    def insist(self, refusal, command, **arguments):
        """Again and again while QEMU refuses for this reason."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.execute(command, **arguments)
            except RuntimeError as error:
                if refusal not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.002)


def migrated(data):
    if data.get("status") == "failed":
        raise RuntimeError("the migration has failed")
    return data.get("status") == "completed"


def stop_and_migrate(monitor, path):
    """The plain way: stop, write all of the memory to a file, continue. Seconds of pause."""
    monitor.background(False)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        monitor.events.clear()
        monitor.execute("stop")
        begun = monitor.wait("STOP")
        monitor.migrate_to(fd)
        monitor.wait("MIGRATION", migrated)
        monitor.cont()
        return monitor.wait("RESUME") - begun
    finally:
        os.close(fd)
        os.unlink(path)


def savevm(monitor):
    """QEMU's own snapshot inside of the qcow2 file."""
    monitor.background(False)
    monitor.events.clear()
    said = monitor.execute("human-monitor-command", **{"command-line": "savevm bench"})
    if said.strip():
        raise RuntimeError(f"savevm: {said.strip()}")
    begun = monitor.wait("STOP")
    pause = monitor.wait("RESUME") - begun
    monitor.execute("human-monitor-command", **{"command-line": "delvm bench"})
    return pause


def stream(monitor, fd):
    """Seconds for which QEMU stands still for a background snapshot into `fd`, and that it takes to write it."""
    monitor.background(True)
    monitor.events.clear()
    begun = time.monotonic()
    monitor.migrate_to(fd)
    pause = -monitor.wait("STOP") + monitor.wait("RESUME")
    monitor.wait("MIGRATION", migrated)
    return pause, time.monotonic() - begun


def stream_to_nothing(monitor):
    """Into /dev/null, which does not even look at what it is given."""
    fd = os.open(os.devnull, os.O_WRONLY)
    try:
        return stream(monitor, fd)
    finally:
        os.close(fd)


def stream_to_reader(monitor):
    """Into a socket whose reader does nothing but read: what every way out of QEMU costs."""
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(["cat"], stdin=theirs, stdout=subprocess.DEVNULL):
        theirs.close()
        try:
            return stream(monitor, ours.fileno())
        finally:
            ours.close()
