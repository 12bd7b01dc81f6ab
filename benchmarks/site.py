"""A deployment of noray whose workers are a program of ours, run by the real command line and ended with the block."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

from benchmarks import proc
from benchmarks.machine import HOST_PYTHON
from supervisor.control.client import NoController, connect

ROOT = Path(__file__).resolve().parents[1]
WAIT = "import signal; signal.pause()"  # stands for etcd and the frontend, which are not what is measured


class Site:
    def __init__(
        self, place: Path, worker: Sequence[str], replicas: int, hosts: Mapping[str, Any], stop: Mapping[str, Any] | None = None
    ) -> None:
        """`worker` replaces `python -m dynamo.mocker` and all its arguments."""
        self.place, self.replicas = place, replicas
        self.name = f"b{os.getpid()}"
        bin_ = place / "bin"
        bin_.mkdir()
        _script(bin_ / "etcd", f"exec {HOST_PYTHON} -I -S -c {_quoted(WAIT)}")
        _script(
            bin_ / "python",
            'case "$1 $2" in\n'
            f'"-m dynamo.frontend") exec {HOST_PYTHON} -I -S -c {_quoted(WAIT)} ;;\n'
            f'"-m dynamo.mocker") exec {" ".join(map(_quoted, worker))} ;;\n'
            f'esac\nexec {HOST_PYTHON} "$@"',
        )
        model = place / "model"
        model.mkdir()
        inventory = {"hosts": {name: {"python": str(bin_ / "python"), **keys} for name, keys in hosts.items()}}
        first = next(iter(hosts))
        service = {"name": "w", "served_as": "w", "model": str(model), "engine": "mocker", "replicas": replicas}
        service |= {"stop": dict(stop)} if stop else {}
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
        argv = ["serve", str(self.place / "deployment.yaml"), "-i", str(self.place / "hosts.yaml")]
        self._serve = subprocess.Popen(self._argv(argv), env=self.env, stdout=self._log, stderr=self._log)
        anyio.run(self._all_started)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._serve is not None
        if self._serve.poll() is None:
            subprocess.run(self._argv(["down", "--yes"]), env=self.env, capture_output=True, check=False)
            self._serve.kill()
        self._serve.wait()
        self._log.close()

    def down(self) -> subprocess.CompletedProcess[str]:
        """As an operator types it."""
        return subprocess.run(self._argv(["down", "--yes"]), env=self.env, capture_output=True, text=True, check=False)

    def helpers(self, role: str, process: str = "") -> list[int]:
        """Keepers or pumps of this deployment, by their titles."""
        return [
            pid
            for pid, words in proc.living().items()
            if words.startswith(f"noray-{role} {process}") and f"({self.name})" in words
        ]

    async def _all_started(self) -> None:
        with anyio.fail_after(120):
            while True:
                try:
                    async with connect(self.place / "state" / self.name / "controller.sock") as client:
                        async for seen in client.request("follow", follow=True):
                            rows: Any = seen["processes"]
                            failed = [f"{p['name']}: {p['reason']}" for p in rows if p["state"] in ("failed", "backoff")]
                            if failed:
                                raise RuntimeError("; ".join(failed[:3]))
                            if rows and all(p["pid"] for p in rows):
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
