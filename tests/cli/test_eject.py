"""The rounds of `noray eject`: each host by itself, and only those that may be. On virtual time."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor.cli import eject, rounds
from supervisor.cli.render.eject import Report, question, show_ejected
from supervisor.cli.render.text import Look
from supervisor.errors import HostUnreachable, UsageError
from supervisor.spec import Host
from tests.fakes.fake import FakeChannel, FakeHost

BASE = "/var/tmp/noray-1000/id"
QUIET: dict[str, Any] = {"base": BASE, "user": "ada", "deployments": ["lab"], "bytes": 3 << 30, "living": [], "others": []}
DONE: dict[str, Any] = {"living": [], "removed": [BASE, "/var/tmp/noray-1000"], "left": [], "others": []}
RUN = {
    "what": "run",
    "deployment": "lab",
    "process": "qwen-0",
    "run": "r1",
    "user": "ada",
    "since": "2026-01-02 03:04:05 +0000",
}
THEIRS = [
    RUN,
    {**RUN, "process": "qwen-1", "run": "r2", "since": "2026-01-01 03:04:05 +0000"},
    {"what": "controller", "deployment": "lab", "controller": "desk:7", "user": "ada", "since": "2026-01-03 00:00:00 +0000"},
    {**RUN, "deployment": "big", "user": "bob"},
    {**RUN, "what": "orphan", "deployment": "old", "process": "etcd-0", "since": None},
    {"what": "claim", "claim": "gpu-GPU-1"},
]

Answer = Callable[[str], dict[str, Any] | None]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    import trio.testing

    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


def visits(monkeypatch: pytest.MonkeyPatch, answers: Mapping[str, Answer], heard: list[str]) -> eject.Visits:
    def program(name: str) -> Callable[[FakeChannel, Mapping[str, Any] | None], None]:
        def there(channel: FakeChannel, message: Mapping[str, Any] | None) -> None:
            if message is not None:
                heard.append(f"{name} {message['op']}")
                said = answers[name](message["op"])
                if said is not None:
                    channel.say(said)

        return there

    hosts = {name: FakeHost(name, {"eject": program(name)}) for name in answers}
    hosts["away"].unreachable = HostUnreachable("no route to away")
    monkeypatch.setattr(rounds, "connect", lambda host: hosts[host.name].transport())
    return eject.Visits({name: Host(name, "local", "/p") for name in answers})


@pytest.mark.anyio
async def test_each_host_is_ejected_or_says_why_not_and_none_waits_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    answers: dict[str, Answer] = {
        "good": lambda op: QUIET if op == "look" else DONE,
        "busy": lambda op: {**QUIET, "living": THEIRS},
        "late": lambda op: QUIET if op == "look" else {**DONE, "living": [RUN], "removed": []},
        "rest": lambda op: QUIET if op == "look" else {**DONE, "removed": [], "left": ["/x: Permission denied"]},
        "deaf": lambda op: None,
        "lost": lambda op: QUIET if op == "look" else None,
        "away": lambda op: QUIET,
    }
    made = visits(monkeypatch, answers, heard)
    began = anyio.current_time()
    await made.on_all(made.look)
    assert anyio.current_time() - began == eject.LOOK_S, "the deaf one's time, and nobody else's on top of it"
    before = {each["host"]: each["state"] for each in made.reports}
    there = dict.fromkeys(("good", "late", "rest", "lost"), "there")
    assert before == {**there, "busy": "refused", "deaf": "unseen", "away": "unseen"}
    await made.on_all(made.eject)
    await made.aclose()
    assert sorted(line for line in heard if "eject" in line) == ["good eject", "late eject", "lost eject", "rest eject"]
    after = {each["host"]: each["state"] for each in made.reports}
    assert after == {"good": "clean", "busy": "refused", "late": "refused", "rest": "left", "deaf": "unseen", "lost": "unseen",
                     "away": "unseen"}  # fmt: skip
    text = show_ejected(made.reports, Look())
    assert text == GOLDEN


GOLDEN = """\
good  clean: /var/tmp/noray-1000/id and /var/tmp/noray-1000 removed (3.0 GiB)
busy  REFUSED, nothing was touched: 6 things of noray's here, which must end first
  qwen-0@r1 of big (user bob, since 2026-01-02 03:04:05 +0000): noray down -d big (as user bob)
  qwen-0@r1, qwen-1@r2 and controller desk:7 of lab (user ada, since 2026-01-01 03:04:05 +0000): noray down -d lab
  gpu-GPU-1: held by a process that does not say who it is; look for it with: ss -xlp
  etcd-0@r1 of old (user ada): noray doctor gpu --reap-ours
late  REFUSED, nothing was touched: 1 thing of noray's here, which must end first
  qwen-0@r1 of lab (user ada, since 2026-01-02 03:04:05 +0000): noray down -d lab
rest  NOT CLEAN: /x: Permission denied
deaf  NOT EJECTED: deaf did not answer within 60 s
lost  NOT EJECTED: not known whether it is clean: lost did not answer within 300 s
away  NOT EJECTED: no route to away
"""


def report(**changes: Any) -> Report:
    return eject.told("gpu01", {**QUIET, **changes}, done=False)


def test_the_question_has_the_blast_radius_and_the_neighbours_are_named() -> None:
    assert question([report(), report(deployments=["x"])]) == (
        "This removes every trace of noray from gpu01 and gpu01 (6.0 GiB, logs, records and data of lab and x included). Go on?"
    )
    assert question([report(deployments=[], bytes=0)]) == "This removes every trace of noray from gpu01 (0.0 MiB). Go on?"
    text = show_ejected([eject.told("gpu01", {**QUIET, **DONE, "others": [{"path": "/n", "user": "bob"}]}, done=True)], Look())
    assert text.splitlines()[1] == "  /n is user bob's: left alone"


def test_which_hosts_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts.yaml").write_text(json.dumps({"hosts": {n: {"transport": "local"} for n in ("gpu01", "gpu02")}}))
    monkeypatch.setenv("NORAY_INVENTORY", str(tmp_path))

    def meant(*hosts: str, all_: bool = False) -> list[str]:
        return list(eject._meant(argparse.Namespace(hosts=list(hosts), all=all_, inventory=None, deployment=None)))

    assert meant(all_=True) == ["gpu01", "gpu02"]
    assert meant("gpu02") == ["gpu02"]
    for hosts, all_ in (((), False), (("gpu01",), True)):
        with pytest.raises(UsageError, match="names of hosts, or --all"):
            meant(*hosts, all_=all_)
    with pytest.raises(UsageError, match="no host gpu3 in the inventory; it has gpu01, gpu02"):
        meant("gpu3")
