"""`deployment.yaml`: what shall run. One frozen model per section; attribute names are the keys of the file.

What depends on the inventory (hosts left out) or on another key (`served_as`) is filled in while validating, so that
past this layer nothing is optional that has an answer. Numbers named as durations are seconds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo

from supervisor.spec.document import Document, parse, read
from supervisor.spec.gpus import Gpus
from supervisor.spec.gpus import problems as gpu_problems
from supervisor.spec.infrastructure import Discovery, Etcd, Nats, OrWord, Planes, discovered, nats_wanted
from supervisor.spec.inventory import Inventory
from supervisor.spec.names import clashes
from supervisor.spec.problem import Problem, SpecError, listed
from supervisor.spec.report import from_pydantic
from supervisor.spec.roles import expanded
from supervisor.spec.scaled import scaled
from supervisor.spec.words import (
    BLANK,
    Args,
    Context,
    Count,
    Env,
    IpAddress,
    KnownHost,
    Labels,
    ModelPath,
    Name,
    Port,
    Says,
    Seconds,
    Section,
    Span,
    Text,
    Word,
    allowed,
    context,
    distinct,
    planned,
)


class Restart(Section):
    """When to try again: at most `budget` restarts within `window` seconds, then the process is `failed` until `noray start`.

    on_failure: after any end that nobody asked for, unless only a human can change its cause. always: and never give up, at the
    longest delay. never: not at all.
    """

    policy: Annotated[Literal["always", "on_failure", "never"], Says("always, on_failure or never")] = "on_failure"
    budget: Count = 5
    window: Span = 600.0


class Stop(Section):
    """How long a stop may take, in seconds: `drain` for requests in flight, then SIGTERM and `term` to end, then SIGKILL."""

    drain: Seconds = 60.0
    term: Seconds = 30.0


class Ready(Section):
    """When a start has failed: after `stall` seconds without any progress, however long it takes in all.

    Progress is what it writes, reads, and fills on its GPUs. One that only computes is given four times as long.
    """

    stall: Span = 300.0


def _labelled(labels: Mapping[str, str], known: Context) -> tuple[str, ...]:
    """The hosts that have all of these labels."""
    return tuple(host for host in known.hosts if labels.items() <= known.labels.get(host, {}).items())


def _on_some_host(labels: Mapping[str, str], info: ValidationInfo) -> Mapping[str, str]:
    known = context(info)
    if not _labelled(labels, known):
        there = sorted({f"{key}: {value}" for own in known.labels.values() for key, value in own.items()})
        raise allowed(f"labels that one host of the inventory has ({listed(there) if there else 'none has any'})")
    return labels


def _candidates(value: object, info: ValidationInfo) -> object:
    host = info.data.get("host")
    if value is None:
        fit = _labelled(info.data.get("labels") or {}, context(info))
        return (host,) if host else tuple(info.data.get("gpus") or ()) or fit
    if host:
        raise allowed("host or hosts, not both")
    return value


def _with_labels(value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    labels = info.data.get("labels") or {}
    fit = set(_labelled(labels, context(info)))
    if not fit.intersection(value):
        raise allowed("a host that has the labels of `labels`")
    return tuple(host for host in value if host in fit)


def _doors(value: object, info: ValidationInfo) -> object:
    return _candidates(value, info) if info.data.get("host") or value is not None else context(info).hosts[:1]


class Frontend(Section):
    """The OpenAI-compatible HTTP servers and routers: replica i on `hosts[i % n]`. `bind` None: the plan decides."""

    never: ClassVar[Mapping[str, str]] = {"on_lost": "clients know it by its host", "lost_after": "clients know it by its host"}

    replicas: Annotated[int, Field(ge=1, le=100), Says("an integer from 1 to 100")] = 1
    host: KnownHost | None = None
    hosts: Annotated[
        tuple[KnownHost, ...],
        Field(min_length=1, validate_default=True),
        BeforeValidator(_doors),
        AfterValidator(distinct),
    ] = BLANK
    port: Port = 8000
    bind: IpAddress | None = None
    args: Args = Field(default_factory=dict)
    extra_args: tuple[Text, ...] = ()
    env: Env = Field(default_factory=dict)
    restart: Restart = Restart()

    @property
    def seats(self) -> tuple[tuple[str, int], ...]:
        """Host and HTTP port of each replica. Those on one host have ports in a row, `port` being the first."""
        spread = (divmod(replica, len(self.hosts)) for replica in range(self.replicas))
        return tuple((self.hosts[which], self.port + turn) for turn, which in spread)


def _own_name(value: object, info: ValidationInfo) -> object:
    return info.data.get("name", "unnamed") if value is None else value


class Role(Section):
    """Workers that are alike: all of a model, or its `prefill` or `decode`.

    `on_lost`: what becomes of a replica whose host has been lost for `lost_after` seconds. replace: a new one, with a number
    of its own, stands in for it on another of its hosts until it serves again.
    """

    not_yet: ClassVar[Mapping[str, str]] = {"nodes": "one engine over several hosts"}

    replicas: Count = 1
    args: Args = Field(default_factory=dict)
    extra_args: tuple[Text, ...] = ()
    gpus: Gpus | None = None
    labels: Annotated[Labels, AfterValidator(_on_some_host)] = Field(default_factory=dict)
    host: KnownHost | None = None
    hosts: Annotated[
        tuple[KnownHost, ...],
        Field(min_length=1, validate_default=True),
        BeforeValidator(_candidates),
        AfterValidator(distinct),
        AfterValidator(_with_labels),
    ] = BLANK
    env: Env = Field(default_factory=dict)
    on_lost: Annotated[Literal["wait", "replace"], Says("wait or replace")] = "wait"
    lost_after: Span = 60.0
    restart: Restart = Restart()
    stop: Stop = Stop()
    ready: Ready = Ready()


class Model(Role):
    """One service: `replicas` identical workers serving `model` to clients under the name `served_as`.

    Of a model with `prefill` and `decode`, `Deployment.models` has two (spec/roles.py), each with the key of its own role set.
    """

    not_yet: ClassVar[Mapping[str, str]] = {**Role.not_yet, "loras": "LoRA adapters"}

    name: Name
    served_as: Annotated[Word, BeforeValidator(_own_name), Field(validate_default=True)] = BLANK
    model: ModelPath
    engine: Annotated[
        Literal["vllm", "mocker"],
        Says("vllm or mocker"),
        planned(("sglang", "trtllm"), "sglang and trtllm; this version runs engine: vllm and mocker"),
    ]
    prefill: Role | None = None
    decode: Role | None = None

    @property
    def role(self) -> str:
        """prefill, decode, or "" where each worker does both."""
        return "prefill" if self.prefill is not None else "decode" if self.decode is not None else ""

    @property
    def whole(self) -> str:
        """The model's name in the file: of its role's without the role."""
        return self.name.removesuffix(f"-{self.role}") if self.role else self.name


def _etcd_wanted(value: object, info: ValidationInfo) -> object:
    found = info.data.get("discovery")
    if found is None or found.ours:
        return {} if value is None else value
    if value is not None:
        raise allowed(f"no etcd section with {'discovery: file' if found.backend == 'file' else 'an external etcd'}")
    return None


class Deployment(Section):
    """The whole file, with hosts resolved. `etcd` is None exactly when `discovery` is not one of ours."""

    name: Name
    discovery: Annotated[Discovery, BeforeValidator(discovered), OrWord(), Field(validate_default=True)] = BLANK
    etcd: Annotated[Etcd | None, BeforeValidator(_etcd_wanted), Field(validate_default=True)] = BLANK
    planes: Planes = Planes()
    nats: Annotated[Nats | None, BeforeValidator(nats_wanted), Field(validate_default=True)] = BLANK
    frontend: Annotated[Frontend, Field(validate_default=True)] = BLANK
    env: Env = Field(default_factory=dict)
    models: Annotated[tuple[Model, ...], Field(min_length=1)]

    @property
    def gateway_port(self) -> int | None:
        """Where Dynamo's processes find several members of an etcd on their own host; None for one, and behind TLS, which would
        not see the names that it was promised.
        """
        urls, own = self.discovery.endpoints, self.etcd
        if own is not None:
            return own.gateway_port if own.members > 1 else None
        return self.discovery.gateway_port if len(urls) > 1 and urls[0].startswith("http:") else None

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host that this deployment may use, in the order it names them."""
        named = [*(self.etcd.hosts if self.etcd else ())]
        named += [self.nats.host] if self.nats else []
        named += [*self.frontend.hosts, *(host for model in self.models for host in model.hosts)]
        return tuple(dict.fromkeys(named))


def load_deployment(path: Path, inventory: Inventory) -> Deployment:
    """Read and check one deployment file against an inventory. Raises SpecError with everything that is wrong."""
    return parse_deployment(read(path), inventory, path)


def parse_deployment(
    text: str, inventory: Inventory, path: Path = Path("deployment.yaml"), replicas: Mapping[str, int] | None = None
) -> Deployment:
    """`load_deployment` for text that is no file yet; `path` names it in messages. `replicas`: of services, instead of what it
    says.
    """
    document = scaled(expanded(parse(text, path)), replicas or {})
    problems = [*document.problems, *clashes(document, tuple(inventory.hosts))]
    labels = {name: host.labels for name, host in inventory.hosts.items()}
    known = Context(path.absolute().parent, tuple(inventory.hosts), labels)
    try:
        deployment = Deployment.model_validate(document.data, context=known)
    except ValidationError as error:
        raise SpecError([*problems, *from_pydantic(error, document, Deployment)]) from None
    problems += _disagreements(deployment, document)
    if problems:
        raise SpecError(problems)
    return deployment


def _disagreements(deployment: Deployment, document: Document) -> Iterator[Problem]:
    # Asked only of a file whose sections are right one by one: about a wrong host nothing more can be said.
    hosts = deployment.hosts
    if deployment.discovery.backend == "file" and len(hosts) > 1:
        text = f"found 'file', allowed: etcd, as this deployment uses several hosts ({', '.join(hosts)})"
        yield document.problem(("discovery",), text)
    if deployment.discovery.backend == "file" and deployment.planes.request == "nats":
        text = "found 'nats', allowed: tcp, as with discovery: file nobody could tell whose an instance is"
        yield document.problem(("planes", "request"), text)
    yield from _door_problems(deployment, document)
    yield from gpu_problems(deployment.models, document)
    for index, model in enumerate(deployment.models):
        if model.on_lost == "replace" and (why := _nowhere(model, deployment.discovery.backend)):
            yield document.problem(("models", index, "on_lost"), f"found 'replace', allowed: wait, as {why}")


def _nowhere(model: Model, discovery: str) -> str:
    """Why no other replica could stand in for one of these."""
    if discovery == "file":
        return "with discovery: file there is one host"
    if model.gpus:
        return "its GPUs are given by hand (gpus), each to one of its replicas"
    return f"it may only be on {model.hosts[0]}" if len(model.hosts) == 1 else ""


def _door_problems(deployment: Deployment, document: Document) -> Iterator[Problem]:
    frontend, etcd, gateway = deployment.frontend, deployment.etcd, deployment.gateway_port
    for replica, (host, port) in enumerate(frontend.seats):
        taken: tuple[int, ...] = (etcd.port, etcd.peer_port) if etcd and host in etcd.hosts else ()
        taken += (gateway,) if gateway else ()
        taken += (deployment.nats.port,) if deployment.nats and deployment.nats.host == host else ()
        if port not in taken and port <= 65535:
            continue
        found = f"found {frontend.port}"
        if replica >= len(frontend.hosts):
            found += f", by which frontend-{replica} on {host} gets {port}"
        others = "etcd or NATS" if deployment.nats else "etcd"
        rule = (
            f"a port that {others} does not use ({' and '.join(map(str, taken))})" if port in taken else "up to 65535 for all"
        )
        yield document.problem(("frontend", "port"), f"{found}, allowed: {rule}")
        break
    used = tuple(dict.fromkeys(host for host, _ in frontend.seats))
    if frontend.bind and len(used) > 1 and not ipaddress.ip_address(frontend.bind).is_unspecified:
        text = f"found {frontend.bind!r}, allowed: 0.0.0.0, ::, or nothing, as there are frontends on {' and '.join(used)}"
        yield document.problem(("frontend", "bind"), text)
