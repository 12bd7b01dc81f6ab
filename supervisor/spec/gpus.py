"""Which GPUs a model may use, and which of its replicas takes which: `gpus: {gpu01: [0, 1], gpu02: [GPU-…]}`.

A replica takes as many of them on one host as its engine's parallel sizes multiply to, in the order written. What the host
cannot have (no such GPU) only the host can say; what the file alone shows to be wrong is said here. Without the key, GPUs are
placed by noray (plan/place.py); with `{}` there are none, as for a CPU build.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from supervisor.spec.document import Document
from supervisor.spec.problem import Loc, Problem, listed, where
from supervisor.spec.words import KnownHost, Says, allowed

if TYPE_CHECKING:
    from supervisor.spec.deployment import Model

SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
MOCKED = ("tensor_parallel_size", "pipeline_parallel_size")  # flags that a mocker has not: here they count its GPUs
SHORT = ("-tp", "-pp", "-dp")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z-]{1,60}")


def _gpu(value: int | str) -> int | str:
    good = bool(_UUID.fullmatch(value)) if isinstance(value, str) else 0 <= value < 1024
    if not good:
        raise ValueError
    return value


def _one_sort(value: tuple[int | str, ...]) -> tuple[int | str, ...]:
    if len({type(gpu) for gpu in value}) > 1:
        raise allowed("indexes only, or UUIDs only: CUDA does not take both in one list")
    return value


Gpu = Annotated[int | str, AfterValidator(_gpu), Says("the index of a GPU (0, 1, …), or its UUID (GPU-… or MIG-…)")]
GpuList = tuple[Gpu, ...]
Gpus = Mapping[KnownHost, Annotated[GpuList, Field(min_length=1), AfterValidator(_one_sort)]]


def size(model: Model) -> int:
    """GPUs that each replica takes."""
    factors = (model.args.get(key, 1) for key in SIZES)
    return math.prod(value for value in factors if type(value) is int and value > 0)


def placed(model: Model) -> bool:
    """Whether noray chooses its GPUs. A mocker needs none, and gets some only where its file says how many."""
    if model.gpus is not None:
        return False
    return model.engine != "mocker" or any(key in model.args for key in MOCKED)


def seats(model: Model) -> tuple[tuple[str, tuple[int | str, ...]], ...]:
    """Where replicas find room, first come first served: one on each host, then the next on each, as long as there is any.

    A replica's seat depends on those before it only, so more replicas move none.
    """
    need, gpus = size(model), model.gpus or {}
    rounds = max((len(own) // need for own in gpus.values()), default=0)
    found = [(host, own[n * need : (n + 1) * need]) for n in range(rounds) for host, own in gpus.items()]
    return tuple((host, own) for host, own in found if len(own) == need)


def problems(models: Sequence[Model], document: Document) -> Iterator[Problem]:
    first: dict[tuple[str, int | str], Loc] = {}
    for index, model in enumerate(models):
        loc: Loc = ("models", index)
        for host, own in (model.gpus or {}).items():
            if host not in model.hosts:
                text = f"found the key {host!r}, allowed: a host that `hosts` names ({listed(model.hosts)})"
                yield document.key_problem((*loc, "gpus", host), text)
            for number, gpu in enumerate(own):
                here = (*loc, "gpus", host, number)
                # A UUID is one card wherever it is written; whether an index is the same one only the host knows.
                taken = first.setdefault((host if isinstance(gpu, int) else "", gpu), here)
                if taken != here:
                    yield document.problem(
                        here, f"found {gpu!r}, which {where(document.written(taken))} has, allowed: each GPU once"
                    )
        if model.gpus or placed(model):
            yield from _counts(model, loc, document)


def _counts(model: Model, loc: Loc, document: Document) -> Iterator[Problem]:
    wrong = [key for key in SIZES if type(value := model.args.get(key, 1)) is not int or value < 1]
    for key in wrong:
        yield document.problem((*loc, "args", key), f"found {model.args[key]!r}, allowed: an integer of at least 1")
    if wrong:
        return
    for number, word in enumerate(model.extra_args):
        flag = word.partition("=")[0]
        if flag in SHORT or flag.replace("-", "_").removeprefix("__") in SIZES:
            text = f"found {word!r}, allowed: the parallel sizes in args, as they say how many GPUs a replica takes"
            yield document.problem((*loc, "extra_args", number), text)
    room = len(seats(model))
    if model.gpus and room < model.replicas:
        need = size(model)
        each = f"{need} GPU{'s' if need > 1 else ''} of one host for each"
        text = f"found room for {room}, allowed: {each} of the {model.replicas} replicas"
        yield document.problem((*loc, "gpus"), text)
