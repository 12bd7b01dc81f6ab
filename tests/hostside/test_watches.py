"""What a host looks at by itself: it tells what is new and nothing else, at the pace it was given, until it is told to end."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from supervisor.hostside.reactor import Timer
from supervisor.hostside.watches import Watches
from tests.hostside.driver import Host, Link

UPTIME = r'"uptime":\{[^}]*\}'


class Clock:
    """As much of a reactor as a watch needs."""

    def __init__(self) -> None:
        self.now, self._due = 0.0, list[tuple[float, Timer]]()

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        self._due.append((self.now + delay_s, Timer(call)))
        return self._due[-1][1]

    def until(self, end: float) -> None:
        while self._due and (first := min(self._due, key=lambda due: due[0]))[0] <= end:
            self._due.remove(first)
            self.now = first[0]
            if first[1].call is not None:
                first[1].call()
        self.now = end


class Site:
    """One thing that is looked at, and what was told of it."""

    def __init__(self, **pace: Any) -> None:
        self.clock, self.told, self.looked = Clock(), list[dict[str, Any]](), list[float]()
        self.answer: dict[str, Any] = {"end": 0}
        self.watches = Watches(self.clock.after, self.told.append, lambda: self.clock.now)
        self.watches.begin({"id": 7, "every_s": 1.0, **pace}, self.look)

    def look(self, done: Callable[[dict[str, Any]], None]) -> None:
        self.looked.append(self.clock.now)
        done(dict(self.answer))


def test_the_first_answer_is_told_and_then_each_that_differs() -> None:
    site = Site()
    assert site.told == [{"news": 7, "end": 0}]
    site.clock.until(5.0)
    assert (len(site.told), len(site.looked)) == (1, 6)
    site.answer = {"end": 9}
    site.clock.until(6.0)
    assert site.told[1:] == [{"news": 7, "end": 9}]


def test_what_moves_in_every_answer_is_no_news() -> None:
    site = Site(steady=UPTIME)
    for n in range(5):
        site.answer = {"status": 200, "body": f'{{"status":"ready","uptime":{{"secs":{n},"nanos":5}}}}', "error": ""}
        site.clock.until(n + 1)
    assert [said["body"] for said in site.told[1:]] == ['{"status":"ready","uptime":{"secs":0,"nanos":5}}'], (
        "as it was answered"
    )
    site.answer["body"] = site.answer["body"].replace("ready", "notready")
    site.clock.until(6)
    assert len(site.told) == 3


def test_it_looks_less_often_at_what_takes_long() -> None:
    site = Site(every_s=0.1, patience=0.05, at_most_s=1.0)
    site.clock.until(100.0)
    pauses = [after - before for before, after in zip(site.looked, site.looked[1:], strict=False)]
    assert all(pause <= max(0.1, 0.05 * at) + 1e-9 for at, pause in zip(site.looked, pauses, strict=False))
    assert max(pauses[:20]) < 0.1 + 1e-9 < max(pauses) < 1.0 + 1e-9
    assert len(site.looked) < 200


def test_ended_it_looks_no_more_also_when_an_answer_is_on_its_way() -> None:
    site = Site()
    waiting: list[Callable[[dict[str, Any]], None]] = []
    site.watches.begin({"id": 8, "every_s": 1.0}, waiting.append)
    for number in (7, 8, 99):
        site.watches.end({"id": number})
    waiting[0]({"end": 1})
    site.clock.until(60.0)
    assert (len(site.told), len(site.looked), len(waiting)) == (1, 1, 1)


def test_one_of_the_same_id_goes_on_at_its_own_pace() -> None:
    site = Site()
    site.watches.begin({"id": 7, "every_s": 10.0}, site.look)
    site.clock.until(30.0)
    assert (len(site.told), len(site.looked)) == (1, 5)
    site.answer = {"end": 1}
    site.watches.begin({"id": 7, "every_s": 10.0}, site.look)
    assert len(site.told) == 2


# --- through a link ------------------------------------------------------------------------------------------------------


class Page:
    """An address that answers whatever `body` is."""

    def __init__(self) -> None:
        self.body, self.asked = "one", 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                with self._listener.accept()[0] as conn:
                    conn.recv(1 << 16)
                    self.asked += 1
                    conn.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.body)}\r\n\r\n{self.body}".encode())
            except OSError:
                return

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.close()


def news(link: Link, number: int) -> dict[str, Any]:
    return link.until(lambda m: m.get("news") == number)


def test_news_of_an_address_and_of_a_log(any_host: Host, page: Page) -> None:
    link = any_host.link()
    link.send(op="watch", id=1, host="127.0.0.1", port=page.port, path="/health", every_s=0.02, timeout_s=2.0, steady="[0-9]+")
    assert news(link, 1) == {"news": 1, "status": 200, "body": "one", "error": ""}
    page.body = "one 2"  # differs from what was told by more than a number
    assert news(link, 1)["body"] == "one 2"
    page.body = "one 3"
    link.started("r1", ["sh", "-c", "echo hello; exec sleep 1000"])
    link.send(op="watch", id=2, run="r1", every_s=0.02)
    while news(link, 2)["end"] < len("hello\n"):
        pass
    page.close()
    assert news(link, 1)["status"] == 0
    assert [m["body"] for m in link.said if m.get("news") == 1][:-1] == ["one", "one 2"], "only what is new"
    link.stopped("r1")


def test_an_unwatch_ends_it(link: Link, page: Page) -> None:
    link.send(op="watch", id=1, host="127.0.0.1", port=page.port, path="/", every_s=0.001)
    news(link, 1)
    link.send(op="unwatch", id=1)
    link.reply(op="http", host="127.0.0.1", port=page.port, path="/")  # whatever was on its way has been answered before
    asked = page.asked
    for _ in range(20):
        link.reply(op="http", host="127.0.0.1", port=page.port, path="/")
    assert page.asked - asked == 20
    assert json.dumps(link.said).count('"news"') == 1
