"""One machine with a real systemd as PID 1, over this machine's own root file system, for as long as our input is open.

    unshare --mount --propagation private python warden.py '{"users": {...}, "logind": "...", "key": "..."}'

Prints the pid of the machine's PID 1, and again when it has rebooted. Written to the machine is what it needs beyond our
`/`: users, sshd with pam_systemd, logind's settings, and folders of ours, read-only; everything it changes goes to a tmpfs,
which outlives a reboot. It has its own network (loopback), processes, mounts, host name, boot id and cgroups, and
may neither load modules nor set the clock. It ends with us however we end: at the end of our input we also remove its cgroup,
killed -9 we leave that one, empty, to the next of us.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

PLACE = Path("/run")  # in our own mount namespace: whatever is mounted here, only we see
CGROUPS = PLACE / "cgroups"
DISK = PLACE / "disk"
PREFIX = "noray-test-machine-"
STALE_S = 60.0
REBOOTED = (-signal.SIGHUP, 128 + signal.SIGHUP)  # how the PID 1 of a pid namespace ends then: reboot(2)

# What may not be done to the kernel that all share.
FORBIDDEN = ",".join(f"-{cap}" for cap in ("sys_module", "sys_time", "sys_rawio", "mac_admin", "mac_override", "audit_control"))

# The machine's own units and everybody's wants are hidden: it boots what bed.target names.
BOOT = r"""
set -e
mount -t overlay overlay -o lowerdir=/,upperdir=$1/upper,workdir=$1/work $1/root
cd $1/root
rm -rf usr/lib/systemd/system/*.wants etc/fstab
hostname "$(cat etc/hostname)"
ip link set lo up
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind "$1/boot_id" proc/sys/kernel/random/boot_id
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
disk=$1 caps=$2
shift 2
while [ $# -gt 0 ]; do
  mkdir -p ".$2"
  mount --rbind "$1" ".$2"
  mount -o remount,bind,ro ".$2"
  above=${2%/*}
  while [ "$above" ]; do chmod a+x ".$above"; above=${above%/*}; done
  shift 2
done
mkdir -p .old
pivot_root . .old
umount -l .old
exec setpriv --bounding-set="$caps" env -i container=noray-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --unit=bed.target --log-target=console --show-status=no
"""

TARGET = """\
[Unit]
Requires=dbus.service systemd-logind.service bed-ssh.service bed-up.service
Wants=multi-user.target
"""
SSH = """\
[Unit]
Requires=systemd-logind.service
After=systemd-logind.service
[Service]
Type=notify
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -f /etc/ssh/bed
KillMode=process
"""
UP = """\
[Unit]
Requires=bed-ssh.service
After=bed-ssh.service
[Service]
Type=oneshot
ExecStart=/usr/bin/touch /run/bed-is-up
"""
SSHD_CONFIG = """\
ListenAddress 127.0.0.1
HostKey /etc/ssh/bed-host-key
UsePAM yes
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
"""
# `required` and not `optional`: a login that is no session of logind would prove nothing here.
PAM = """\
auth     required pam_permit.so
account  required pam_permit.so
session  required pam_unix.so
session  required pam_systemd.so
"""


def furnish(upper: Path, spec: dict[str, Any]) -> None:
    """What differs from our own `/`."""

    def write(name: str, text: str, mode: int = 0o644) -> None:
        path = upper / name
        for folder in (*reversed(path.relative_to(upper).parents),):
            (upper / folder).mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    units = "etc/systemd/system"
    write(f"{units}/bed.target", TARGET)
    write(f"{units}/bed-ssh.service", SSH)
    write(f"{units}/bed-up.service", UP)
    os.symlink("/dev/null", upper / units / "modprobe@.service")
    os.setxattr(upper / units, "trusted.overlay.opaque", b"y")
    write("etc/systemd/logind.conf.d/bed.conf", f"[Login]\n{spec['logind']}\n")
    write("etc/ssh/bed", SSHD_CONFIG)
    write("etc/ssh/bed-host-key", spec["host_key"], 0o600)
    write("etc/pam.d/sshd", PAM)
    write("etc/hostname", spec["name"] + "\n")
    write("etc/machine-id", uuid.uuid4().hex + "\n")
    passwd, shadow, group = (Path("/etc", name).read_text() for name in ("passwd", "shadow", "group"))
    write("root/.ssh/authorized_keys", spec["authorized"])
    for name, (uid, lingers) in spec["users"].items():
        passwd += f"{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n"
        shadow += f"{name}:*:19000:0:99999:7:::\n"
        group += f"{name}:x:{uid}:\n"
        write(f"home/{name}/.ssh/authorized_keys", spec["authorized"])
        for path in ("", "/.ssh", "/.ssh/authorized_keys"):
            os.chown(upper / f"home/{name}{path}", uid, uid)
        if lingers:
            write(f"var/lib/systemd/linger/{name}", "")
    write("etc/passwd", passwd)
    write("etc/shadow", shadow, 0o640)
    write("etc/group", group)


def own_cgroup() -> Path:
    """A fresh one below ours. Mounted anew, wherever (and whether) this machine has it; what dead wardens left goes."""
    CGROUPS.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", CGROUPS], check=True)
    ours = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    parent = CGROUPS / ours[3:].strip("/")
    for left in parent.glob(PREFIX + "*"):
        if time.time() - left.stat().st_mtime > STALE_S:
            remove(left)
    made = parent / (PREFIX + uuid.uuid4().hex[:8])
    made.mkdir()
    return made


def remove(cgroup: Path, top: bool = True) -> bool:
    for folder, _, _ in os.walk(cgroup, topdown=False):
        try:
            if top or folder != str(cgroup):
                os.rmdir(folder)
        except OSError:
            return False  # somebody lives there
    return True


def main(spec: dict[str, Any]) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", PLACE], check=True)
    for name in ("", "upper", "work", "root"):
        (DISK / name).mkdir()
    furnish(DISK / "upper", spec)
    cgroup = own_cgroup()

    def enter() -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))

    namespaces = ("--net", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child=KILL")
    argv = ["unshare", *namespaces, "sh", "-c", BOOT, "boot", str(DISK), FORBIDDEN, *sum(spec["shown"].items(), ())]
    while True:
        (DISK / "boot_id").write_text(f"{uuid.uuid4()}\n")
        machine = subprocess.Popen(argv, preexec_fn=enter, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children")
        while machine.poll() is None and not (init := children.read_text().split()):
            time.sleep(0.002)
        print(init[0], flush=True)
        ended = os.pidfd_open(machine.pid)
        heard, _, _ = select.select([sys.stdin, ended], [], [])
        os.close(ended)
        if sys.stdin in heard:
            machine.kill()
        rebooted = machine.wait() in REBOOTED and sys.stdin not in heard
        until = time.monotonic() + 10
        while not remove(cgroup, top=not rebooted) and time.monotonic() < until:
            time.sleep(0.01)  # the kernel is still ending what was in there
        if not rebooted:
            break
    if sys.stdin not in heard:
        sys.stdout.close()  # it is switched off
        sys.stdin.read()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
