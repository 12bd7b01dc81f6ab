"""Write the recordings of this directory anew, from the real programs. As root, in about three minutes.

    DYNAMO_VENV/bin/python -m tests.core.exits.record [NAME...]

Those that need a GPU (cuda-*, nccl-*, no-gpu) are their headers' commands, run by hand where there were H100s.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from supervisor.hostside.runstate import TAIL_BYTES
from supervisor.kinds.base import LaunchSpec
from supervisor.probes import ask, judge
from tests.core.exits import HERE
from tests.hostside.driver import Host
from tests.hostside.memory import limited
from tests.recorded import record as lab_of
from tests.recorded.record import VERSIONS, Lab, Running, fetch, ready, until

NOBODY = ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all"]
HOG = "x = bytearray(10**9)"
PARENT = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {HOG!r}]).returncode != 0)"
BUS = "import mmap, os; f = open('x', 'w+b'); f.truncate(8192); m = mmap.mmap(f.fileno(), 8192); f.truncate(0); m[5000]"


def shortened(text: str) -> str:
    for long, short in ((str(Path(sys.prefix)), "/opt/dynamo"), (sys.base_prefix, "/usr"), (tempfile.gettempdir(), "/tmp")):
        text = text.replace(long, short)
    return re.sub(r"/tmp/(tmp|nh)[a-z0-9_]+", "/tmp/lab", text)


def write(name: str, row: str, command: str, ended: dict[str, Any], output: bytes) -> None:
    told = {key: ended[key] for key in ("code", "signal", "signs") if ended.get(key) is not None}
    tail = output[-TAIL_BYTES:].decode("utf-8", "replace")
    versions = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    made = f"{versions}, {datetime.datetime.now(datetime.UTC).date()}"
    lines = [f"# row: {row}", f"# command: {command}", f"# exit: {json.dumps(told)}", f"# recorded: {made}", "", tail]
    (HERE / f"{name}.txt").write_text(shortened("\n".join(lines)))
    print(f"{name:32} {told}", flush=True)


def end(name: str, row: str, lab: Lab, one: Running, how: str = "", within_s: float = 30.0) -> None:
    """`one` has been started, and ends by itself."""
    status = one.child.wait(within_s)
    ended = {"code": status} if status >= 0 else {"signal": -status}
    words = shlex.join(str(word) for word in one.child.args)  # type: ignore[union-attr]
    env = " ".join(f"{key}={value}" for key, value in one.spec.env.items() if key == "ETCD_LEASE_TTL")
    command = " ".join(filter(None, (env, words, how and f"({how})")))
    write(name, row, command, ended, (lab.scratch / f"{lab.running.index(one)}.log").read_bytes())


def other(spec: LaunchSpec, before: str, after: str, **more: Any) -> LaunchSpec:
    """The same command with one word of it another; ports of its own unless said otherwise."""
    return replace(
        spec,
        argv=tuple(after if w.endswith(before) else w for w in spec.argv),
        **{"ports": dict.fromkeys(spec.ports, 0), **more},
    )


def dynamo(place: Path) -> None:
    with Lab(place, "etcd") as lab:
        member = lab.etcd()
        until(lambda: judge.etcd_healthy(*fetch(member.ports["client"], ask.etcd_health())).ok)
        front, worker = lab.frontend(), lab.mocker()
        until(lambda: ready(worker) and judge.frontend_live(*fetch(front.ports["http"], ask.frontend_live())).ok)
        fs, ws = front.spec, worker.spec

        def more(spec: LaunchSpec, *words: str) -> LaunchSpec:
            return replace(spec, argv=(*spec.argv, *words), ports=dict.fromkeys(spec.ports, 0))

        end("frontend-unknown-flag", "arguments", lab, lab.start(more(fs, "--no-such-flag")))
        end("frontend-invalid-choice", "arguments", lab, lab.start(more(fs, "--router-mode", "xyz")))
        end("mocker-unknown-flag", "arguments", lab, lab.start(more(ws, "--no-such-flag")))
        end("mocker-model-missing", "model", lab, lab.start(other(ws, "/tiny", "/models/missing")))
        empty = place / "empty"
        empty.mkdir()
        end("mocker-model-empty", "model", lab, lab.start(other(ws, "/tiny", str(empty))))
        hub = other(ws, "/tiny", "Qwen/Qwen3-0.6B")
        end("mocker-hub-unreachable", "hub", lab, lab.start(hub), "without network")
        end("frontend-port-taken", "port", lab, lab.start(replace(fs, ports={**front.ports, "stream": 0})), "http port taken")
        end("mocker-port-taken", "port", lab, lab.start(replace(ws, ports={**worker.ports, "system": 0})), "rpc port taken")
        for number, row in ((9, "sigkill"), (11, "segv"), (6, "abort"), (4, "ill")):
            victim = lab.mocker()
            until(lambda v=victim: ready(v))
            victim.child.send_signal(number)
            end(f"mocker-signal-{number}", row, lab, victim, f"kill -{number}")
        etcd_ends(lab, member)
        short = {"ETCD_LEASE_TTL": "3"}
        front = lab.start(replace(fs, env=fs.env | short, ports=dict.fromkeys(fs.ports, 0)))
        worker = lab.start(replace(ws, env=ws.env | short, ports=dict.fromkeys(ws.ports, 0)))
        until(lambda: ready(worker) and judge.frontend_live(*fetch(front.ports["http"], ask.frontend_live())).ok)
        member.child.kill()
        end("frontend-lease-lost", "lease", lab, front, "etcd killed", 60)
        end("mocker-lease-lost", "lease", lab, worker, "etcd killed", 60)
        late = [lab.start(replace(spec, ports=dict.fromkeys(spec.ports, 0))) for spec in (fs, ws)]
        for name, one in zip(("frontend", "mocker"), late, strict=True):
            end(f"{name}-etcd-unreachable", "etcd", lab, one, "etcd away, gives up after 120 s", 180)


def etcd_ends(lab: Lab, member: Running) -> None:
    spec, place = member.spec, lab.scratch
    home = next(word for word in spec.argv if word.endswith("/etcd"))

    def there(name: str, **more: Any) -> LaunchSpec:
        return other(spec, home, str(place / name), **more)

    def again(name: str) -> LaunchSpec:
        """Of a member that has run there before."""
        first = lab.start(there(name))
        until(lambda: judge.etcd_healthy(*fetch(first.ports["client"], ask.etcd_health())).ok)
        first.stop()
        return there(name)

    def spoil(path: Path) -> None:
        with path.open("r+b") as file:
            file.write(b"\xa5" * 20_000)

    end("etcd-unknown-flag", "arguments", lab, lab.start(replace(spec, argv=(*spec.argv, "--no-such-flag"))))
    end("etcd-invalid-value", "arguments", lab, lab.start(replace(spec, argv=(*spec.argv, "--heartbeat-interval", "abc"))))
    end("etcd-port-taken", "port", lab, lab.start(there("e1", ports=member.ports)), "both ports taken")
    (place / "file").write_text("")
    end("etcd-data-no-directory", "etcd-data", lab, lab.start(there("file/e2")))
    spec_of_nobody = there("e3")
    (place / "e3").mkdir(mode=0o755)
    for folder in (place, *place.parents):
        if folder != Path("/tmp") and folder.is_relative_to("/tmp"):
            folder.chmod(0o755)
    program = shutil.copy(Path(f"/proc/{member.child.pid}/exe"), place / "etcd-itself")  # nobody may not read our environment
    spec_of_nobody = replace(spec_of_nobody, argv=(*NOBODY, str(program), *spec_of_nobody.argv[1:]))
    end("etcd-data-forbidden", "etcd-data", lab, lab.start(spec_of_nobody), "the directory is root's")
    spoiled = again("e4")
    spoil(place / "e4/member/snap/db")
    end("etcd-db-corrupt", "etcd-data", lab, lab.start(spoiled), "20 kB of its database overwritten")
    spoiled = again("e5")
    spoil(next((place / "e5/member/wal").glob("0*.wal")))
    end("etcd-wal-corrupt", "etcd-data", lab, lab.start(spoiled), "20 kB of its write-ahead log overwritten")
    (place / "e6").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place / "e6"], check=True)
    try:
        end("etcd-disk-full", "disk", lab, lab.start(there("e6/etcd")), "on a tmpfs of 200 kB")
    finally:
        subprocess.run(["umount", "-l", place / "e6"], check=True)


def interpreters(_: Path) -> None:
    """What an interpreter says that lacks what it is asked for."""
    for name, row, argv in (
        ("no-dynamo", "no-dynamo", ["/usr/bin/python3", "-m", "dynamo.frontend"]),
        ("no-vllm", "no-engine", [sys.executable, "-m", "dynamo.vllm", "--model", "/models/x"]),
    ):
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        write(name, row, shlex.join(argv), {"code": done.returncode}, done.stdout)


def keepers(_: Path) -> None:
    """Ends of which a real keeper says more than their parent sees: the signs are its own."""
    with limited(64) as join:
        in_64_mib = ["sh", "-c", f'{join}; exec "$@"', "sh", sys.executable, "-c"]
        for name, row, argv in (
            ("oom-killed", "oom", [*in_64_mib, HOG]),
            ("oom-killed-below", "oom-below", [*in_64_mib, PARENT]),
            ("segfault", "segv", [sys.executable, "-c", "import ctypes; ctypes.string_at(0)"]),
            ("bus-error", "bus", [sys.executable, "-c", BUS]),
        ):
            with at_a_keeper(argv) as (ended, output):
                write(name, row, shlex.join(argv), ended, output)


@contextlib.contextmanager
def at_a_keeper(argv: list[str]) -> Iterator[tuple[dict[str, Any], bytes]]:
    host = Host()
    try:
        link = host.link()
        link.start("r1", argv)
        ended = link.gone()["exit"]
        yield ended, host.log("w-0", "r1")
    finally:
        host.close()


ALL: tuple[Callable[[Path], None], ...] = (interpreters, keepers, dynamo)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        lab_of.write_model(Path(place) / "tiny")
        for each in ALL:
            if sys.argv[1:] in ([], [each.__name__]):
                each(Path(place))


if __name__ == "__main__":
    os.umask(0o022)
    main()
