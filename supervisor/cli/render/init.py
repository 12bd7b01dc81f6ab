"""The two files that `noray init` writes, and what it says about the hosts it asked."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.cli.render.text import Cell, Look, table
from supervisor.core.words import plain, plural
from supervisor.spec.names import reserved
from supervisor.spec.words import NAME

_NO_TEXT = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}  # to some YAML reader or other
_SERVICES = ("qwen", "model", "llm", "served-model")


@dataclass(frozen=True, slots=True)
class Asked:
    """One host and what it answered. `error`: it is not usable as it is, and why."""

    name: str
    address: str = ""  # what one types after `ssh`, where that is not its name; local: ""
    local: bool = False
    python: str = ""
    python_version: str = ""
    gpus: tuple[tuple[int, str], ...] = ()  # index and name
    gpus_error: str = ""
    cluster_address: str = ""
    error: str = ""


def host_name(alias: str, taken: Sequence[str]) -> str:
    """The alias, or what a name may have of it."""
    name = re.sub("[^a-z0-9]+", "-", alias.lower()).strip("-")[:30] or "host"
    name = f"host-{name}" if reserved(name) or not re.fullmatch(NAME, name) else name
    return next(each for n in range(1, len(taken) + 2) if (each := name if n == 1 else f"{name}-{n}x") not in taken)


def hosts_yaml(asked: Sequence[Asked], pythons: Sequence[str]) -> str:
    """Those that do not answer stand there as comments, with the reason."""
    good = [each for each in asked if not each.error]
    usual = Counter(each.python for each in good).most_common(1)[0][0]
    lines = [
        "# The hosts that noray may use, as `noray init` found them. Everything else that may stand here: noray schema",
        "# Of a name, ssh_config says the rest: user, key, jump hosts. Host keys are pinned by: noray hosts --trust",
        "defaults:",
        f"  python: {usual}  # of the Dynamo environment there; tried: {', '.join(pythons)}",
        "hosts:",
    ]
    for each in asked:
        keys = []
        if each.local:
            keys.append("transport: local")
        if each.address:
            keys.append(f"address: {_word(each.address)}")
        if each.python not in ("", usual):
            keys.append(f"python: {each.python}")
        if len(good) > 1 and each.cluster_address:
            keys.append(f"cluster_address: {_word(each.cluster_address)}")
        line = f"{_word(each.name)}: {{{', '.join(keys)}}}"
        lines.append(f"  # {line}  # {plain(each.error)}" if each.error else f"  {line}  # {_saw(each)}")
        if len(good) > 1 and not each.error and not each.cluster_address:
            lines.append("    # still to be said: cluster_address, the IP address at which the other hosts reach it")
    return "\n".join(lines) + "\n"


def deployment_yaml(asked: Sequence[Asked]) -> str:
    """etcd and frontend on the first host, and one model on every GPU; mockers where there is none."""
    good = [each for each in asked if not each.error]
    first, count = _word(good[0].name), sum(len(each.gpus) for each in good)
    names = [each.name for each in asked]
    service = next(word for word in (*_SERVICES, "m" * 39) if not any(n == word or n.startswith(f"{word}-") for n in names))
    lines = [
        "# What shall run. noray plan -i hosts.yaml shows it, noray up -i hosts.yaml starts it.",
        "name: lab",
        f"etcd: {{host: {first}}}",
        f"frontend: {{host: {first}, port: 8000}}",
        "models:",
        f"  - name: {service}  # of the service; its processes are {service}-0, {service}-1, …",
        '    served_as: Qwen/Qwen3-0.6B  # what clients write into "model"',
        "    model: Qwen/Qwen3-0.6B  # a hub id, fetched by every host; or an absolute path that is there on all of them",
    ]
    if count:
        lines += [
            "    engine: vllm",
            f"    replicas: {count}  # one for each GPU; with args: {{tensor_parallel_size: 2}} a replica takes two",
        ]
    else:
        lines += [
            "    engine: mocker  # no GPU was found: it plays the engine without one. On GPUs: vllm",
            "    replicas: 2",
        ]
    return "\n".join(lines) + "\n"


def show_asked(asked: Sequence[Asked], look: Look) -> str:
    rows = [
        [Cell(each.name, "bad" if each.error else "good"), Cell("left out: " + plain(each.error) if each.error else _saw(each))]
        for each in asked
    ]
    return "\n".join(table(rows, look, wrapped=True)) + "\n"


def _saw(each: Asked) -> str:
    kinds = Counter(name for _, name in each.gpus)
    gpus = ", ".join(f"{count} x {plain(name)}" for name, count in kinds.items()) or plural(0, "GPU")
    return f"{gpus}, Python {each.python_version}" + (f"; {plain(each.gpus_error)}" if each.gpus_error else "")


def _word(text: str) -> str:
    safe = re.fullmatch("[A-Za-z][A-Za-z0-9._-]*", text) or re.fullmatch(r"[0-9]+(\.[0-9]+){3}", text)
    return text if safe and text.lower() not in _NO_TEXT else json.dumps(text)
