"""Real vLLM on the CPU that generates nothing: ready when it has made an embedding, or said that it can classify."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import pytest

from tests.e2e.procs import send
from tests.gpu.lab import tell, timed
from tests.vllm.lab import ENGINE_ARGS, CpuLab

EMBEDS = {"embedding_worker": True, "runner": "pooling", "convert": "embed"}
CLASSIFIES = {"classify_worker": True, "runner": "pooling", "convert": "classify"}


@pytest.mark.parametrize("args", [EMBEDS, CLASSIFIES], ids=["embeds", "classifies"])
def test_a_pooling_worker_is_served_and_healed(tmp_path_factory: pytest.TempPathFactory, args: Mapping[str, object]) -> None:
    with CpuLab(tmp_path_factory.mktemp("l")) as lab:
        lab.deployment["models"] = [lab.engine(args=ENGINE_ARGS | args)]
        lab.write()
        served = lab.serve()
        before = lab.process("tiny-0")
        size = len(lab.embedding()) if args is EMBEDS else 0
        assert (size > 0) == (args is EMBEDS)
        send(lab.engine_core(before["pid"]), signal.SIGKILL)
        healed = lab.healed("tiny-0", before["run"])
        assert args is not EMBEDS or len(lab.embedding()) == size
        tell("pooling", args=args, seconds_to_ready=served, serving_after=healed, vector=size, down=timed(lab.down))
