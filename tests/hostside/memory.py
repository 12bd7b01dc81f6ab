"""A cgroup with little memory, whichever hierarchy has the memory controller."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

NONE = "no memory controller to limit a cgroup with"


@contextlib.contextmanager
def limited(mib: int) -> Iterator[str]:
    """Gives a line of shell that moves the shell into it."""
    for mount, limit, swap in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max"),
    ):
        group = mount / f"noray-test-{uuid.uuid4().hex[:8]}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / limit).exists():
                continue
            (group / limit).write_text(str(mib << 20))
            with contextlib.suppress(OSError):  # no accounting of swap
                (group / swap).write_text(str(mib << 20) if "memsw" in swap else "0")
            yield f"echo $$ > {group}/cgroup.procs"
            return
        finally:
            with contextlib.suppress(OSError):  # whoever was in it is just going
                group.rmdir()
    pytest.skip(NONE)
