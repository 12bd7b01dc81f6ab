"""A model with `prefill` and `decode` as the two services that it is: `big-prefill` and `big-decode`.

Before the file is checked, as `scaled` does it: each role is then checked as the model that it would be, and every problem is
said where it was written. What stands beside the roles holds for both; a role's own keys override it, `args` and `env` key
by key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from supervisor.spec.document import Document
from supervisor.spec.problem import Loc, Problem, show, where

ROLES = ("prefill", "decode")
MERGED = ("args", "env")
SHARED = ("name", "served_as", "model", "engine", *ROLES)  # a role cannot have its own
OWN = {"replicas": "how many of each there are", "gpus": "which GPUs are whose"}  # both cannot have the same


def expanded(document: Document) -> Document:
    """Where both roles are mappings. What is wrong with the pair itself is among the problems of the result."""
    data = document.data
    models = data.get("models") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(models, tuple) or not any(map(_roles, models)):
        return document
    made: list[object] = []
    origins: dict[Loc, Loc] = {}
    problems = list(document.problems)
    for index, model in enumerate(models):
        loc: Loc = ("models", index)
        origins["models", len(made)] = loc
        if not (roles := _roles(model)):
            made.append(model)
            continue
        problems += _problems(model, roles, loc, document)
        own = {role: {} if model.get(role) is None else model[role] for role in roles}
        beside = {key: value for key, value in model.items() if key not in roles and key not in OWN}
        if len(roles) < len(ROLES) or not all(isinstance(keys, dict) for keys in own.values()):
            made.append(beside | {role: keys for role, keys in own.items() if not isinstance(keys, dict)})
            continue
        for role, keys in own.items():
            here: Loc = ("models", len(made))
            origins[here] = loc
            made.append(_role(beside, role, keys, here, (*loc, role), origins))
    return replace(document, data={**data, "models": tuple(made)}, origins=origins, problems=tuple(problems))


def _roles(model: object) -> tuple[str, ...]:
    return tuple(role for role in ROLES if role in model) if isinstance(model, dict) else ()


def _role(
    beside: Mapping[str, object], role: str, keys: Mapping[str, object], here: Loc, written: Loc, origins: dict[Loc, Loc]
) -> dict[str, object]:
    found = dict(beside)
    if "host" in keys or "hosts" in keys:  # the one instead of the other
        found = {key: value for key, value in found.items() if key not in ("host", "hosts")}
    for key, value in keys.items():
        if key in SHARED:
            continue
        both = found.get(key)
        if key in MERGED and isinstance(both, dict) and isinstance(value, dict):
            found[key] = both | value
            origins |= {(*here, key, each): (*written, key, each) for each in value}
        else:
            found[key] = value
            origins[*here, key] = (*written, key)
    if isinstance(name := found.get("name"), str):
        found |= {"name": f"{name}-{role}", "served_as": name if found.get("served_as") is None else found["served_as"]}
    return found | {role: {}}


def _problems(model: Mapping[str, object], roles: tuple[str, ...], loc: Loc, document: Document) -> Iterator[Problem]:
    for key, why in OWN.items():
        if key in model:
            text = f"found the key {key!r} beside {' and '.join(roles)}, allowed: inside each of them, as it says {why}"
            yield Problem(document.path, document.key_place((*loc, key)), where(loc), text)
    if len(roles) < len(ROLES):
        text = f"found {roles[0]} alone, allowed: prefill and decode, or neither, as one cannot answer without the other"
        yield Problem(document.path, document.key_place((*loc, roles[0])), where(loc), text)
    for role in roles:
        keys = model[role]
        for key in SHARED:
            if isinstance(keys, dict) and key in keys:
                text = f"found the key {show(key)}, allowed: only beside prefill and decode, as both serve one model"
                yield Problem(document.path, document.key_place((*loc, role, key)), where((*loc, role)), text)
