"""Clients that ask, one request after the other, until told to stop; every request counts."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Load:
    """`with Load(ask, 4) as load:`; `ask` makes one request and raises if it was not answered properly."""

    def __init__(self, ask: Callable[[], object], clients: int) -> None:
        self.done = 0
        self.failures: list[str] = []
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

    def _client(self) -> None:
        while not self._stop:
            failure = ""
            try:
                self._ask()
            except Exception as error:
                failure = repr(error)
            with self._moved:
                self.done += 1
                if failure:
                    self.failures.append(failure)
                self._moved.notify_all()


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
