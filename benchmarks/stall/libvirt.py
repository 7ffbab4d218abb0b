"""libvirt's live snapshot with memory, of the same guest: what Stillpoint's pause is compared with where libvirt is installed
(Debian: libvirt-daemon, libvirt-daemon-driver-qemu, libvirt-clients).

A private libvirtd without privileges, in a directory of its own; as root it runs as "nobody", because root's is the system's.
"""

import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from monitor import Monitor, write_wrapper

NOBODY = 65534
PATIENCE = 120
RECORDS = 100
DOMAIN = """<domain type='qemu'>
  <name>stall</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{directory}/vmlinux</kernel>
    <initrd>{directory}/initrd</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>{directory}/qemu</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{directory}/disk.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='{directory}/console'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def installed():
    return all(shutil.which(program) for program in ("libvirtd", "virsh"))


class Domain:
    """with Domain(...) as domain: domain.snapshot()"""

    def __init__(self, guest, disk, memory_mib, workload):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="stall-"))  # Short, for the sockets' paths.
        self.environment = {"PATH": os.environ["PATH"] + ":/usr/sbin", "HOME": str(self.directory)}
        self.environment |= {f"XDG_{kind}_HOME": str(self.directory) for kind in ("CONFIG", "CACHE", "DATA", "STATE")}
        # Else virsh starts a second daemon when it comes first.
        self.environment |= {"XDG_RUNTIME_DIR": str(self.directory), "LIBVIRT_AUTOSTART": "0"}
        self.numbers = 0
        self.daemon = self.monitor = None
        for file in (guest / "vmlinux", guest / "initrd"):
            shutil.copy(file, self.directory)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, self.directory / "disk.qcow2"], check=True)
        write_wrapper(self.directory / "qemu", self.directory / "qmp")
        (self.directory / "qemu").chmod(0o755)
        cmdline = f"{(guest / 'cmdline').read_text().strip()} still.workload={workload}"
        text = DOMAIN.format(memory=memory_mib, directory=self.directory, cmdline=cmdline)
        (self.directory / "domain.xml").write_text(text)
        for path in (self.directory, *self.directory.iterdir()):
            if os.geteuid() == 0:
                os.chown(path, NOBODY, NOBODY)

    def __enter__(self):
        self.daemon = self.start("libvirtd", stderr=subprocess.DEVNULL)
        try:
            self.virsh("create", self.directory / "domain.xml")
            self.monitor = Monitor(self.directory / "qmp")
            self.await_writer()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.monitor is not None:
            self.monitor.close()
        try:
            self.virsh("destroy", "stall")
        except (subprocess.CalledProcessError, TimeoutError):
            pass  # It never ran.
        self.daemon.terminate()
        self.daemon.wait(PATIENCE)
        shutil.rmtree(self.directory)

    def start(self, *command, **options):
        if os.geteuid() == 0:
            options |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        return subprocess.Popen(command, env=self.environment, cwd=self.directory, stdin=subprocess.DEVNULL, **options)

    def virsh(self, *arguments):
        """Until the daemon listens, its answer is an error."""
        deadline = time.monotonic() + PATIENCE
        while True:
            process = self.start("virsh", "-q", "-c", "qemu:///session", *arguments, stderr=subprocess.PIPE, text=True)
            _, stderr = process.communicate()
            if process.returncode == 0:
                return
            if "Failed to connect socket" not in stderr or time.monotonic() > deadline:
                raise subprocess.CalledProcessError(process.returncode, arguments, stderr=stderr)
            time.sleep(0.1)

    def await_writer(self):
        """Until the record writer in the guest is at work."""
        deadline = time.monotonic() + PATIENCE
        while max(disk["stats"]["wr_operations"] for disk in self.monitor.execute("query-blockstats")) < RECORDS:
            if time.monotonic() > deadline:
                raise TimeoutError("the guest has written nothing")
            time.sleep(0.1)

    def snapshot(self):
        """Seconds of pause, by QEMU's own events."""
        self.monitor.stamps()
        self.numbers += 1
        memory, disk = (self.directory / f"{kind}-{self.numbers}" for kind in ("memory", "disk"))
        self.virsh(
            "snapshot-create-as", "stall", "--live", "--no-metadata", "--memspec", f"file={memory},snapshot=external",
            "--diskspec", f"vda,snapshot=external,file={disk}",
        )  # fmt: skip
        stamps = self.monitor.stamps()
        memory.unlink()
        return stamps["RESUME"] - stamps["STOP"]
