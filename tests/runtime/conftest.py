"""Virtual time: runtime code speaks only anyio, so an hour of waiting takes none. Production runs on asyncio."""

from __future__ import annotations

import pytest
import trio.testing


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
