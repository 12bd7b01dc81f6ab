"""The verb, with hosts whose every word is scripted: clocks that differ, hosts that are slow, silent, or lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import pytest
import trio.testing

from supervisor.cli import logs, main
from supervisor.cli.args import parser
from supervisor.errors import HostUnreachable
from tests.fakes.fake import FakeChannel, FakeHost
from tests.plan.files import deployment, hosts, plan

PLAN = plan(deployment({"hosts": ["gpu01", "gpu02"], "replicas": 2}, frontend={"host": "gpu01"}, etcd={"host": "gpu01"}))
NAMES = {process.wanted.host: name for name, process in PLAN.processes.items() if process.wanted.service == "qwen"}
Said = list[dict[str, object]]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


def now_ms(ahead_s: float = 0.0) -> int:
    return int((time.time() + ahead_s) * 1000)


def log(words: Mapping[str, float], ahead_s: float = 0.0) -> Said:
    """A run that wrote these lines so many seconds ago, by a clock that is ahead."""
    begun: dict[str, object] = {"begin": "r1", "started": now_ms(ahead_s - 100), "timed": True}
    said, offset = [begun], 0
    for text, ago_s in words.items():
        piece = {"run": "r1", "offset": offset, "data": text + "\n", "times": [[offset, now_ms(ahead_s - ago_s)]]}
        said.append(piece)
        offset += len(text) + 1
    return said


def tells(said: Said, *, ahead_s: float = 0.0, then: str = "end") -> Callable[[FakeChannel, Mapping[str, object] | None], None]:
    def program(channel: FakeChannel, message: Mapping[str, object] | None) -> None:
        if message is None:
            return
        channel.say({"now": now_ms(ahead_s)})
        for each in said:
            channel.say(each)
        if then == "lost":
            channel.lose("the line was lost")
        else:
            channel.say({"live": True} if then == "live" else {"end": ""})

    return program


class Hosts:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> None:
        self.fakes: dict[str, FakeHost] = {}
        self._captured = capfdbinary
        monkeypatch.setattr(logs, "connect", lambda host: self.fakes[host.name].transport())

    def add(self, name: str, program: Any) -> FakeHost:
        self.fakes[name] = FakeHost(name, {"tail": program})
        return self.fakes[name]

    async def show(self, *words: str) -> int:
        args = parser().parse_args(["logs", *words, "qwen"])
        return await logs.show(args, PLAN, list(NAMES.values()))

    def seen(self) -> tuple[list[str], str]:
        out, err = self._captured.readouterr()
        return [line.partition(" │ ")[2] or line for line in out.decode().splitlines()], err.decode()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> Hosts:
    assert hosts()["hosts"].keys() == NAMES.keys()
    return Hosts(monkeypatch, capfdbinary)


@pytest.mark.anyio
async def test_two_hosts_are_one_story(known: Hosts) -> None:
    # Not by turns: by turns is how they come when nobody looks at the times.
    known.add("gpu01", tells(log({"one": 9, "two": 8, "five": 5})))
    known.add("gpu02", tells(log({"three": 7, "four": 6})))
    assert await known.show() == 0
    assert known.seen() == (["one", "two", "three", "four", "five"], "")
    assert await known.show("-n", "2") == 0
    assert known.seen() == (["four", "five"], "")
    asked = known.fakes["gpu01"].channels[-1].sent[0]
    assert (asked["lines"], asked["ago_ms"], asked["follow"]) == (2, None, False)


@pytest.mark.anyio
async def test_a_clock_that_is_ahead_is_set_right_and_spoken_of(known: Hosts) -> None:
    known.add("gpu01", tells(log({"one": 9, "three": 7})))
    known.add("gpu02", tells(log({"two": 8, "four": 6}, ahead_s=3600), ahead_s=3600))
    assert await known.show() == 0
    lines, complaint = known.seen()
    assert lines == ["one", "two", "three", "four"]
    assert "gpu02" in complaint
    assert "gpu01" not in complaint
    assert await known.show("--json") == 0
    at = [json.loads(line)["at"] for line in known.seen()[0]]
    assert at == sorted(at)
    assert all(time.time() - 60 < each < time.time() for each in at)


@pytest.mark.anyio
async def test_a_host_that_does_not_answer_costs_its_own_lines_only(known: Hosts) -> None:
    known.add("gpu01", tells(log({"one": 9})))
    known.add("gpu02", tells([])).unreachable = HostUnreachable("cannot reach gpu02")
    assert await known.show() == 1
    lines, complaint = known.seen()
    assert lines == ["one"]
    assert NAMES["gpu02"] in complaint
    known.add("gpu02", tells([*log({"two": 8}), {"run": "r1", "offset": 4, "data": "cut", "times": []}], then="lost"))
    assert await known.show() == 1
    lines, complaint = known.seen()
    assert lines == ["one", "two", "cut"], "what had come before the line broke"


@pytest.mark.anyio
async def test_following_a_slow_host_holds_up_nobody_for_long(known: Hosts) -> None:
    known.add("gpu01", tells(log({"one": 9}), then="live"))
    slow = known.add("gpu02", tells(log({"zero": 10}), then="live"))
    slow.silent = True
    began_s = anyio.current_time()
    async with anyio.create_task_group() as tasks:

        async def see() -> None:
            lines: list[str] = []
            while not lines:
                await anyio.sleep(0.05)
                lines = known.seen()[0]
            assert lines == ["one"]
            assert anyio.current_time() - began_s < logs.BACKLOG_S + 1
            tasks.cancel_scope.cancel()

        tasks.start_soon(see)
        await known.show("-f")


@pytest.mark.anyio
async def test_what_comes_late_but_within_the_window_finds_its_place(known: Hosts) -> None:
    first, second = (known.add(name, tells([], then="live")) for name in ("gpu01", "gpu02"))
    async with anyio.create_task_group() as tasks:

        async def speak() -> None:
            await anyio.sleep(1)
            begun, later, latest = log({"later": 1, "latest": 0})
            for message in (begun, later):
                first.channels[0].say(message)
            await anyio.sleep(logs.WINDOW_S / 2)
            for message in log({"earlier": 2}):
                second.channels[0].say(message)
            await anyio.sleep(logs.WINDOW_S * 2)
            first.channels[0].say(latest)
            await anyio.sleep(logs.WINDOW_S * 2)
            tasks.cancel_scope.cancel()

        tasks.start_soon(speak)
        await known.show("-f")
    assert known.seen()[0] == ["earlier", "later", "latest"]


@pytest.mark.anyio
async def test_following_a_line_that_does_not_end_is_shown_all_the_same(known: Hosts) -> None:
    first = known.add("gpu01", tells([{"begin": "r1", "started": 1, "timed": True}], then="live"))
    known.add("gpu02", tells([], then="live"))
    lines: list[str] = []
    async with anyio.create_task_group() as tasks:

        async def speak() -> None:
            await anyio.sleep(1)
            for offset in range(8):  # never still for long enough to be taken for finished
                first.channels[0].say({"run": "r1", "offset": offset, "data": "#", "times": []})
                await anyio.sleep(logs.UNFINISHED_S / 3)
            lines.extend(known.seen()[0])
            assert lines
            first.channels[0].say({"run": "r1", "offset": 8, "data": "\n", "times": []})
            await anyio.sleep(logs.UNFINISHED_S)
            tasks.cancel_scope.cancel()

        tasks.start_soon(speak)
        await known.show("-f")
    assert "".join(lines + known.seen()[0]) == "#" * 8


@pytest.mark.anyio
async def test_what_noray_has_to_say_does_not_stand_in_a_pipe(known: Hosts) -> None:
    ended = {"ended": "r1", "exit": {"code": 3, "signal": None, "at": 1, "asked": False}}
    known.add("gpu01", tells([*log({"one": 9}), {"gap": 7}, ended]))
    known.add("gpu02", tells(log({})))
    assert await known.show() == 0
    lines, said = known.seen()
    assert lines == ["one"]
    assert "7 bytes" in said
    assert "exited 3" in said


@pytest.mark.parametrize(
    "words",
    [("--previous", "--first-failure"), ("--previous", "--run", "r1"), ("-f", "--previous"), ("-f", "--run", "r1"),
     ("--since", "yesterday"), ("-n", "-1"), ("-n", "many")],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_error(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(["logs", *words, "qwen"])
    except SystemExit as left:  # argparse says it
        code = left.code
    assert code == 2
    complaint = capsys.readouterr().err
    assert sum("error: " in line or line.startswith("noray: ") for line in complaint.splitlines()) == 1
