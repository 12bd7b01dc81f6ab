"""Which GPUs a model may use, and which of its replicas takes which: `gpus: {gpu01: [0, 1], gpu02: [GPU-…]}`.

A replica takes `tensor_parallel_size` of them on one host, in the order written. What the host cannot have (no such GPU) only
the host can say; what the file alone shows to be wrong is said here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from supervisor.spec.document import Document
from supervisor.spec.problem import Loc, Problem, listed, where
from supervisor.spec.words import KnownHost, Says, allowed

if TYPE_CHECKING:
    from supervisor.spec.deployment import Model

SIZE = "tensor_parallel_size"
_SIZE_FLAGS = ("-tp", "--tensor-parallel-size", "--tensor_parallel_size")
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
Gpus = Annotated[
    Mapping[KnownHost, Annotated[tuple[Gpu, ...], Field(min_length=1), AfterValidator(_one_sort)]], Field(min_length=1)
]


def size(model: Model) -> int:
    """GPUs that each replica takes."""
    value = model.args.get(SIZE, 1)
    return value if type(value) is int and value > 0 else 1


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
                yield Problem(document.path, document.key_place((*loc, "gpus", host)), where((*loc, "gpus")), text)
            for number, gpu in enumerate(own):
                here = (*loc, "gpus", host, number)
                # A UUID is one card wherever it is written; whether an index is the same one only the host knows.
                taken = first.setdefault((host if isinstance(gpu, int) else "", gpu), here)
                if taken != here:
                    yield document.problem(here, f"found {gpu!r}, which {where(taken)} has, allowed: each GPU once")
        if model.gpus:
            yield from _counts(model, loc, document)


def _counts(model: Model, loc: Loc, document: Document) -> Iterator[Problem]:
    asked = model.args.get(SIZE, 1)
    if type(asked) is not int or asked < 1:
        yield document.problem((*loc, "args", SIZE), f"found {asked!r}, allowed: an integer of at least 1")
        return
    for number, word in enumerate(model.extra_args):
        if word.partition("=")[0] in _SIZE_FLAGS:
            text = f"found {word!r}, allowed: {SIZE} in args, as it says how many GPUs a replica takes"
            yield document.problem((*loc, "extra_args", number), text)
    room = len(seats(model))
    if room < model.replicas:
        each = f"{asked} GPU{'s' if asked > 1 else ''} of one host for each"
        text = f"found room for {room}, allowed: {each} of the {model.replicas} replicas"
        yield document.problem((*loc, "gpus"), text)
