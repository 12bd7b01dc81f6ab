"""A disk that is really full: a tmpfs of one megabyte in a mount namespace of its own, gone when the last process of it is."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostside.driver import PY, Host, wait_for
from tests.hostside.test_output import LOSS

MEGABYTE = 1 << 20
OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
# Writes a line; when told, two megabytes of lines; when told, a line; when told, ends with 7.
WRITER = (
    "import os, sys, time\n"
    "def told(word):\n"
    "    while not os.path.exists(sys.argv[1] + '/' + word): time.sleep(0.01)\n"
    "os.write(1, b'before\\n')\n"
    "told('write')\n"
    "for n in range(20000): os.write(1, b'%099d\\n' % n)\n"
    "open(sys.argv[1] + '/wrote', 'w').close()\n"
    "told('again')\n"
    "os.write(1, b'after\\n')\n"
    "told('end')\n"
    "os._exit(7)\n"
)
WRITTEN = len("before\n") + 20000 * 100 + len("after\n")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or subprocess.run([*OWN_MOUNTS, "true"], capture_output=True, check=False).returncode != 0,
        reason="needs root: a mount namespace of its own",
    ),
]


@pytest.fixture
def small() -> Iterator[Host]:
    """A host whose directory is on a disk of one megabyte."""
    root = Path(tempfile.mkdtemp(prefix="nh", dir="/tmp"))
    mount = f'mount -t tmpfs -o size=1m noray "{root}/b" && exec "$@"'
    made = Host(root=root, inside=(*OWN_MOUNTS, "sh", "-ec", mount, "box"))
    yield made
    made.close()
    assert not root.exists()
    assert str(root) not in Path("/proc/mounts").read_text()


def seen(host: Host) -> Path:
    """The host's directory as its own processes see it."""
    return Path(f"/proc/{host.box.pid}/root{host.base}")


def fill(path: Path, size: int = 1 << 30) -> None:
    """Write that much, or until there is no room for one byte."""
    with path.open("wb", buffering=0) as file:
        try:
            while size > 0:
                size -= file.write(b"x" * min(size, 4096))
        except OSError:
            pass


def test_a_full_disk_lets_a_controller_in(small: Host) -> None:
    """Just then somebody wants to see what runs there, and to stop it."""
    small.link().started()
    fill(seen(small) / "ballast")
    second = small.link(epoch=2)
    assert [state["phase"] for state in second.said[-1]["hello"]["runs"]] == ["running"]
    second.stopped()


@pytest.mark.parametrize("room", [0, 1, 2, 3, 5])
def test_a_start_without_room_is_a_start_that_failed(small: Host, room: int) -> None:
    """Wherever the disk ends on the way: it is told, it is over, the link lives, and with room the next one starts."""
    link = small.link()
    ballast = seen(small) / "ballast"
    fill(ballast)
    os.truncate(ballast, ballast.stat().st_size - room * 4096)
    link.start("r1")
    state = link.state("r1", lambda s: s["phase"] != "starting")
    if state["phase"] == "gone":
        assert state["exit"]["cause"] == "disk", state["exit"]
        folder = seen(small) / "runs" / small.deployment / "w-0" / "r1"
        assert not folder.exists() or (folder / "gone.json").exists()
    else:
        link.stopped("r1")
    assert not list((seen(small) / "runs" / small.deployment / "w-0").glob(".*")), "a draft is left"
    ballast.unlink()
    link.started("r2")
    link.stopped("r2")


def test_a_full_disk_stops_nobody_and_eats_no_exit_code(small: Host) -> None:
    link = small.link()
    link.started(argv=[*PY, WRITER, str(small.root)])
    folder = seen(small) / "runs" / small.deployment / "w-0" / "r1"
    log = folder / "log" / ("0" * 16)
    assert os.statvfs(folder).f_blocks * 4096 == MEGABYTE
    wait_for(lambda: log.exists() and log.read_bytes() == b"before\n")

    ballast = folder.parent / "ballast"
    fill(ballast, MEGABYTE // 2)
    (small.root / "write").touch()
    wait_for((small.root / "wrote").exists, "the worker goes on")
    note = wait_for(lambda: [n for n in link.state("r1", lambda s: s["notes"])["notes"] if n.startswith("lost ")])
    assert note[-1].endswith(" bytes of log: No space left on device")

    ballast.unlink()
    (small.root / "again").touch()
    wait_for(lambda: log.read_bytes().endswith(b"after\n"), "the log goes on when there is room")

    fill(ballast)
    (small.root / "end").touch()
    told = link.gone()
    assert (told["exit"]["code"], told["exit"]["asked"]) == (7, False)
    assert json.loads((folder / "exit.json").read_text())["code"] == 7
    marks = [int(found) for found in LOSS.findall(log.read_bytes())]
    assert marks, "said where it happened"
    kept = LOSS.sub(b"", log.read_bytes())
    assert len(kept) + sum(marks) == WRITTEN, "every byte is there or counted"
    assert f"lost {sum(marks)} bytes of log: No space left on device" in told["notes"]
    assert kept.startswith(b"before\n" + b"".join(b"%099d\n" % n for n in range(1000)))
