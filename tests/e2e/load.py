"""Clients that ask, one request after the other, until told to stop; every request counts."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from tests.e2e.lab import MODEL, Lab, question


class Asked(NamedTuple):
    """One request: when it began, on time.monotonic(), how long it took, and what was wrong with its answer."""

    at_s: float
    took_s: float
    failure: str


class Load:
    """`with Load(ask, 4) as load:`; `ask` makes one request and raises if it was not answered properly."""

    def __init__(self, ask: Callable[[], object], clients: int) -> None:
        self.done = 0
        self.failures: list[str] = []
        self.requests: list[Asked] = []
        self._ask = ask
        self._moved = threading.Condition()
        self._stop = False
        self._clients = [threading.Thread(target=self._client, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        for client in self._clients:
            client.join(60)

    def more(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until that many more requests have ended."""
        with self._moved:
            wanted = self.done + count
            assert self._moved.wait_for(lambda: self.done >= wanted, timeout_s), f"{self.done} requests, {self.failures}"

    def past(self, at_s: float, timeout_s: float = 60.0) -> None:
        """Wait until every client has begun another request since then, on time.monotonic(), and it has ended."""
        clients = len(self._clients)
        with self._moved:
            enough = self._moved.wait_for(lambda: sum(e.at_s > at_s for e in self.requests) > 2 * clients, timeout_s)
            assert enough, f"{self.done} requests, {self.failures}"

    def _client(self) -> None:
        while not self._stop:
            failure, at_s = "", time.monotonic()
            try:
                self._ask()
            except Exception as error:
                failure = repr(error)
            with self._moved:
                self.done += 1
                self.requests.append(Asked(at_s, time.monotonic() - at_s, failure))
                if failure:
                    self.failures.append(failure)
                self._moved.notify_all()


class Balanced:
    """One request as a balancer does it: to the next door that lists the model (a new one opens before it has found any), and
    to another where this one refuses before the first byte (RFC 9110, 15.6.4). Raises AssertionError.
    """

    def __init__(self, lab: Lab, doors: int, tokens: int) -> None:
        self._lab, self._doors, self._tokens, self._turn = lab, doors, tokens, itertools.count()

    def __call__(self) -> None:
        first, refused = next(self._turn), list[str]()
        for door in range(first, first + 2 * self._doors):
            connection = http.client.HTTPConnection(self._lab.http_host, self._lab.http_port + door % self._doors, timeout=60)
            with closing(connection):
                try:
                    connection.request("GET", "/v1/models")
                    if MODEL not in connection.getresponse().read().decode():
                        continue
                    body = json.dumps(question(self._tokens, stream=True))
                    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    said = answer.read().decode()
                except ConnectionError as error:
                    refused.append(repr(error))
                    continue
            if answer.status == 503:
                refused.append(said)
                continue
            assert answer.status == 200, (answer.status, said)
            assert said.rstrip().endswith("data: [DONE]"), said
            return
        raise AssertionError(f"no door is open: {refused}")


class Request:
    """One request beside the test; `error` is None when it was answered properly."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._ask = ask
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._ask()
        except Exception as error:
            self.error = error

    def wait(self, timeout_s: float = 60.0) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"no answer within {timeout_s:g} s"
