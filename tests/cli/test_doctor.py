"""The rounds of `noray doctor`: all hosts at once, and each one's trouble is its own. On virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
import pytest

from supervisor.cli import doctor
from supervisor.cli import rounds as rounds_of_hosts
from supervisor.errors import HostUnreachable
from supervisor.spec import Host
from tests.fakes.fake import FakeChannel, FakeHost

ORPHAN = {"pid": 7, "seen": "here", "deployment": "lab", "process": "qwen-0", "run": "r1", "care": "abandoned", "orphan": True}
QUIET: dict[str, Any] = {
    "gpus": {"gpus": [], "error": "", "none": "none", "driver": ""},
    "ours": {},
    "claims": {},
    "orphans": [],
}

Answer = Callable[[str], dict[str, Any] | None]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    import trio.testing

    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


def host(name: str, answer: Answer, heard: list[str]) -> FakeHost:
    def doctor_there(channel: FakeChannel, message: Mapping[str, Any] | None) -> None:
        if message is not None:
            heard.append(f"{name} {message['op']}")
            said = answer(message["op"])
            if said is not None:
                channel.say(said)

    return FakeHost(name, {"doctor": doctor_there})


@pytest.mark.anyio
async def test_each_hosts_trouble_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    reaped = {"did": [{**ORPHAN, "ended": True, "how": "stopped by an heir"}]}
    there = {
        "good": host("good", lambda op: {**QUIET, "orphans": [ORPHAN]} if op == "look" else reaped, heard),
        "quiet": host("quiet", lambda op: QUIET, heard),
        "deaf": host("deaf", lambda op: None, heard),
        "away": host("away", lambda op: QUIET, heard),
        "lost": host("lost", lambda op: {**QUIET, "orphans": [ORPHAN]} if op == "look" else None, heard),
    }
    there["away"].unreachable = HostUnreachable("no route to away")
    monkeypatch.setattr(rounds_of_hosts, "connect", lambda host: there[host.name].transport())
    rounds = doctor.Doctors({name: Host(name, "local", "/p") for name in there})
    began = anyio.current_time()
    await rounds.on_all(rounds.look)
    assert anyio.current_time() - began == doctor.LOOK_S, "the deaf one's time, and nobody else's on top of it"
    errors = {each["host"]: each["error"] for each in rounds.reports}
    assert errors.keys() == there.keys()
    assert {name for name, error in errors.items() if error} == {"deaf", "away"}
    assert "no route" in errors["away"]
    await rounds.on_all(rounds.reap)
    await rounds.aclose()
    assert sorted(line for line in heard if "reap" in line) == ["good reap", "lost reap"], (
        "only where there is something to end"
    )
    ended = {each["host"]: (each["pid"], each["ended"]) for each in rounds.done}
    assert ended == {"good": (7, True), "lost": (7, False)}, "no answer is no success"
