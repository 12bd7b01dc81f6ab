"""What SIGTERM does to an engine that generates, if its leader hears it and if its whole group does. Only the real one knows.

This is a measurement, kept so that the next version of vLLM can be asked again; the ladder follows its answer (hostside/
ladder.py). The signals are sent behind noray's back, so to noray each is an exit that nobody asked for.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.e2e.procs import alive, below, until
from tests.fakes.nvml import FakeGpus
from tests.gpu.lab import GpuLab, failed, last_exit, tell

TIMES = 3


@pytest.fixture(scope="module")
def lab(gpu: int, fake: FakeGpus | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuLab]:
    if fake:
        pytest.skip("only a real vLLM can answer")
    with GpuLab(tmp_path_factory.mktemp("l"), [gpu], None) as lab:
        lab.serve()
        yield lab
        lab.down()
        lab.assert_gpus_free()


@pytest.mark.parametrize("whom", ["leader", "group"] * TIMES)
def test_who_finishes_what_it_generates(lab: GpuLab, whom: str) -> None:
    tokens = lab.tokens_for(15)
    before = lab.process("tiny-0")
    pid, run = before["pid"], before["run"]
    assert pid
    tree = [pid, *below(pid)]
    core = lab.engine_core(pid)
    requests = lab.streams(10, tokens)
    began = time.monotonic()
    (os.kill if whom == "leader" else os.killpg)(pid, signal.SIGTERM)
    until(lambda: not alive(core), 120)
    engine = time.monotonic() - began
    until(lambda: not alive(pid), 120)
    leader = time.monotonic() - began
    errors = failed(requests)
    ended = sorted({reason for error in errors for reason in re.findall(r'"finish_reason":"(\w+)"', error) or ["none"]})
    over = time.monotonic() - began
    healed = lab.healed("tiny-0", run)
    tell(f"SIGTERM to the {whom}, ten requests generated", tokens=tokens, finished=10 - len(errors), failed=len(errors),
         requests_over=over, engine_gone=engine, leader_gone=leader, exit=last_exit(lab.process("tiny-0")),
         serving_again=healed, finish_reasons=ended, first_error=errors[:1])  # fmt: skip
    assert not [p for p in tree if alive(p)]
