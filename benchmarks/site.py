"""A deployment of noray whose workers are a program of ours, run by the real command line and ended with the block."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from benchmarks import proc
from benchmarks.machine import HOST_PYTHON
from supervisor.control.client import NoController, connect

ROOT = Path(__file__).resolve().parents[1]
WAIT = "import signal; signal.pause()"  # stands for etcd and the frontend, where they are not what is measured
STUB = Path(__file__).with_name("stub.py")


class Adoption(NamedTuple):
    """Seconds since the new controller was started."""

    adopted_s: float
    ready_s: float


class Site:
    def __init__(
        self, place: Path, worker: Sequence[str], replicas: int, hosts: Mapping[str, Any], stub: Path = STUB, **service: Any
    ) -> None:
        """`worker` replaces `python -m dynamo.mocker` and all its arguments; without one, all are stubs that become ready.

        `service`: more of what the file says of it.
        """
        self.place, self.replicas, self.serving = place, replicas, not worker
        self.name = f"b{os.getpid()}"
        bin_ = place / "bin"
        bin_.mkdir()
        (place / "known").mkdir()

        def stand_in(role: str) -> str:
            words = ["-c", WAIT] if worker else [stub, place / "known", role]
            return " ".join([HOST_PYTHON, "-I", "-S", *map(_quoted, words), '"$@"'])

        _script(bin_ / "etcd", f"exec {stand_in('etcd')}")
        _script(
            bin_ / "python",
            'case "$1 $2" in\n'
            f'"-m dynamo.frontend") exec {stand_in("frontend")} ;;\n'
            f'"-m dynamo.mocker") exec {" ".join(map(_quoted, worker)) or stand_in("worker")} ;;\n'
            f'esac\nexec {HOST_PYTHON} "$@"',
        )
        model = place / "model"
        model.mkdir()
        inventory = {"hosts": {name: {**keys, "python": str(bin_ / "python")} for name, keys in hosts.items()}}
        first = next(iter(hosts))
        service = {"name": "w", "served_as": "w", "model": str(model), "engine": "mocker", "replicas": replicas, **service}
        deployment = {
            "name": self.name,
            "etcd": {"host": first, "port": 23790, "peer_port": 23800},
            "frontend": {"host": first, "port": 28000},
            "models": [service],
        }
        (place / "hosts.yaml").write_text(json.dumps(inventory))
        (place / "deployment.yaml").write_text(json.dumps(deployment))
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("NORAY")}
        self.env |= {"PYTHONPATH": str(ROOT), "NORAY_STATE": str(place / "state")}
        self._serve: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Site:
        self._log = (self.place / "serve.log").open("wb")
        self._begin()
        self._seen(self._started)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._serve is not None
        if self._serve.poll() is None:
            subprocess.run(self._argv(["down", "--yes"]), env=self.env, capture_output=True, check=False)
            self._serve.kill()
        self._serve.wait()
        self._log.close()

    @property
    def controller(self) -> int:
        """Its pid."""
        assert self._serve is not None
        return self._serve.pid

    def noray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """As an operator types it."""
        return subprocess.run(self._argv(words), env=self.env, capture_output=True, text=True, check=False)

    def down(self) -> subprocess.CompletedProcess[str]:
        return self.noray("down", "--yes")

    def helpers(self, role: str, process: str = "") -> list[int]:
        """Keepers or pumps of this deployment, by their titles."""
        return [
            pid
            for pid, words in proc.living().items()
            if words.startswith(f"noray-{role} {process}") and f"({self.name})" in words
        ]

    def runs(self) -> dict[str, str]:
        """The run of each process."""
        found: dict[str, str] = {}

        def look(rows: Any) -> bool:
            found.update((p["name"], p["run"]) for p in rows)
            return bool(rows)

        self._seen(look)
        return found

    def kill(self) -> None:
        """The controller, with SIGKILL; all that it ran goes on."""
        assert self._serve is not None
        self._serve.kill()
        self._serve.wait()

    def again(self, runs: Mapping[str, str]) -> Adoption:
        """Another controller, until it has these runs, and until all are ready. RuntimeError if one is another."""
        began = time.monotonic()
        self._begin()
        adopted: list[float] = []

        def ready(rows: Any) -> bool:
            other = [f"{p['name']}: {p['run']}" for p in rows if p["restarts"] or p["run"] not in (None, runs[p["name"]])]
            if other:
                raise RuntimeError(f"not adopted: {other[:3]}")
            owned = all(p["run"] and p["state"] in ("starting", "ready") for p in rows)  # remembered is `pending`
            if not adopted and rows and owned:
                adopted.append(time.monotonic() - began)
            return bool(adopted) and all(p["state"] == "ready" for p in rows)

        self._seen(ready)
        return Adoption(adopted[0], time.monotonic() - began)

    def _begin(self) -> None:
        argv = ["serve", str(self.place / "deployment.yaml"), "-i", str(self.place / "hosts.yaml")]
        self._serve = subprocess.Popen(self._argv(argv), env=self.env, stdout=self._log, stderr=self._log)

    def _started(self, rows: Any) -> bool:
        failed = [f"{p['name']}: {p['reason']}" for p in rows if p["state"] in ("failed", "backoff")]
        if failed:
            raise RuntimeError("; ".join(failed[:3]))
        return bool(rows) and all(p["state"] == "ready" if self.serving else p["pid"] for p in rows)

    def _seen(self, enough: Callable[[Any], bool]) -> None:
        """Follow the controller until its processes are as wanted."""
        anyio.run(self._follow, enough)

    async def _follow(self, enough: Callable[[Any], bool]) -> None:
        with anyio.fail_after(240):
            while True:
                try:
                    async with connect(self.place / "state" / self.name / "controller.sock") as client:
                        async for seen in client.request("follow", follow=True):
                            if enough(seen["processes"]):
                                return
                except NoController:
                    assert self._serve is not None
                    if self._serve.poll() is not None:
                        raise RuntimeError((self.place / "serve.log").read_text()[-2000:]) from None
                    await anyio.sleep(0.05)

    def _argv(self, words: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "supervisor", *words]


def here(place: Path) -> Mapping[str, Any]:
    """This machine as the only host."""
    return {"here": {"transport": "local", "host_dir": str(place / "h")}}


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _quoted(word: object) -> str:
    return "'" + str(word).replace("'", "'\\''") + "'"
