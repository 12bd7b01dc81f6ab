"""The rounds of `noray hosts`: all at once, each with its deadline, the clock's offset by half the way. On virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from supervisor.cli import hosts, rounds
from supervisor.errors import HostRefused, HostUnreachable
from supervisor.spec import Host
from tests.fakes.fake import FakeChannel, FakeHost

EARLY_MS = 90_000


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    import trio.testing

    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


def there(name: str, *, deaf: str = "") -> FakeHost:
    def survey(channel: FakeChannel, message: Mapping[str, Any] | None) -> None:
        if message is not None and message["op"] != deaf:
            channel.say({"now_ms": EARLY_MS} if message["op"] == "clock" else {"hostname": f"{name}.lab"})

    return FakeHost(name, {"survey": survey})


@pytest.mark.anyio
async def test_each_host_is_asked_at_once_and_has_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"good": there("good"), "slow": there("slow", deaf="survey"), "mute": there("mute", deaf="clock"),
             "away": there("away"), "no": there("no")}  # fmt: skip
    known["away"].unreachable = HostUnreachable("no route to away", "look at its cable")
    known["no"].refuses = HostRefused("no is not for you", "ask for an account")
    monkeypatch.setattr(rounds, "connect", lambda host: known[host.name].transport())
    monkeypatch.setattr(hosts.time, "time", lambda: 60.0)
    surveys = hosts.Surveys({name: Host(name, "local", "/p") for name in known})
    began_s = anyio.current_time()
    await surveys.on_all(surveys.look)
    assert anyio.current_time() - began_s == hosts.SURVEY_S, "the slowest one's time, and nobody else's on top of it"
    await surveys.aclose()
    said = {each["host"]: each for each in surveys.reports}
    assert list(said) == list(known)
    assert {name: each["state"] for name, each in said.items()} == {
        "good": "up", "slow": "unreachable", "mute": "unreachable", "away": "unreachable", "no": "refused",
    }  # fmt: skip
    assert (said["good"]["hostname"], said["good"]["clock_ahead_ms"]) == ("good.lab", 30_000)
    assert (said["away"]["hint"], said["no"]["hint"]) == ("look at its cable", "ask for an account")
