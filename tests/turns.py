"""Turns on this machine. Whatever judges how long something takes does so `with alone():`; all other tests share the machine.

Two flocks, so that pytest's processes, and several pytests of one checkout, need nothing else in common. Whoever wants in
passes the gate first: who wants to be alone waits for those inside, and for nobody after. Only under xdist.
"""

from __future__ import annotations

import fcntl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

ROOM = Path(__file__)
GATE = Path(__file__).with_name("conftest.py")
_inside: IO[str] | None = None  # the room, while a test of ours runs


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    global _inside
    with ROOM.open() as room:
        _inside = room
        _enter(room, fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            _inside = None
            fcntl.flock(room, fcntl.LOCK_UN)  # closing it would not do where a fork of ours lives on


@contextmanager
def alone() -> Iterator[None]:
    """Inside it no other test runs. May be waited for as long as the longest test takes."""
    if _inside is None:
        yield
        return
    fcntl.flock(_inside, fcntl.LOCK_UN)  # or two who want to be alone would wait for each other
    _enter(_inside, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(_inside, fcntl.LOCK_SH)


def _enter(room: IO[str], how: int) -> None:
    with GATE.open() as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, how)
