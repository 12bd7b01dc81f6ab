"""`deployment.yaml`: what shall run. One frozen model per section; attribute names are the keys of the file.

What depends on the inventory (hosts left out) or on another key (`served_as`) is filled in while validating, so that
past this layer nothing is optional that has an answer. Numbers named as durations are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo

from supervisor.spec.document import Document, parse, read
from supervisor.spec.gpus import Gpus
from supervisor.spec.gpus import problems as gpu_problems
from supervisor.spec.inventory import Inventory
from supervisor.spec.names import clashes
from supervisor.spec.problem import Problem, SpecError
from supervisor.spec.report import from_pydantic
from supervisor.spec.words import (
    BLANK,
    Args,
    Context,
    Count,
    Env,
    HostOrFirst,
    IpAddress,
    KnownHost,
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
    not_yet,
    planned,
)


class Restart(Section):
    """When to try again: at most `budget` restarts within `window` seconds, then the process is `failed`."""

    policy: Annotated[Literal["always", "on_failure", "never"], Says("always, on_failure or never")] = "on_failure"
    budget: Count = 5
    window: Span = 600.0


class Stop(Section):
    """How long a stop may take, in seconds from SIGTERM to SIGKILL: `drain` for requests in flight and `term` to end."""

    drain: Seconds = 60.0
    term: Seconds = 30.0


class Ready(Section):
    """When a start has failed: after `stall` seconds without any progress, however long it takes in all."""

    stall: Span = 300.0


def _next_port(value: object, info: ValidationInfo) -> object:
    return info.data.get("port", 2379) + 1 if value is None else value


def _other_port(value: int, info: ValidationInfo) -> int:
    if value == info.data.get("port"):
        raise allowed("a port other than etcd.port")
    return value


def _one(value: object) -> object:
    if type(value) is int and value > 1:
        raise not_yet("more than one; this version runs 1")
    return value


One = Annotated[int, Field(ge=1, le=1), Says("1"), BeforeValidator(_one)]


class Etcd(Section):
    """The etcd that noray runs for this deployment. `lease_ttl` is in whole seconds."""

    host: HostOrFirst = BLANK
    port: Port = 2379
    peer_port: Annotated[Port, BeforeValidator(_next_port), AfterValidator(_other_port), Field(validate_default=True)] = BLANK
    members: One = 1
    lease_ttl: Annotated[int, Field(ge=1, le=86_400), Says("whole seconds: an integer from 1 to 86400")] = 60


class Planes(Section):
    """How Dynamo's processes talk to each other."""

    request: Annotated[Literal["tcp"], Says("tcp"), planned(("nats", "http"), "request: nats and http")] = "tcp"
    event: Annotated[Literal["zmq"], Says("zmq"), planned(("nats",), "event: nats")] = "zmq"


class Frontend(Section):
    """The OpenAI-compatible HTTP server and router. `bind` None: the plan decides."""

    replicas: One = 1
    host: HostOrFirst = BLANK
    port: Port = 8000
    bind: IpAddress | None = None
    args: Args = Field(default_factory=dict)
    extra_args: tuple[Text, ...] = ()
    env: Env = Field(default_factory=dict)


def _own_name(value: object, info: ValidationInfo) -> object:
    return info.data.get("name", "unnamed") if value is None else value


def _candidates(value: object, info: ValidationInfo) -> object:
    host = info.data.get("host")
    if value is None:
        return (host,) if host else tuple(info.data.get("gpus") or ()) or context(info).hosts
    if host:
        raise allowed("host or hosts, not both")
    return value


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise allowed("each host once")
    return value


class Model(Section):
    """One service: `replicas` identical workers serving `model` to clients under the name `served_as`."""

    not_yet: ClassVar[Mapping[str, str]] = {
        "labels": "hosts chosen by their labels",
        "prefill": "disaggregated serving with prefill and decode",
        "decode": "disaggregated serving with prefill and decode",
        "nodes": "one engine over several hosts",
        "loras": "LoRA adapters",
    }

    name: Name
    served_as: Annotated[Word, BeforeValidator(_own_name), Field(validate_default=True)] = BLANK
    model: ModelPath
    engine: Annotated[
        Literal["mocker"],
        Says("mocker"),
        planned(("vllm", "sglang", "trtllm"), "vllm, sglang and trtllm; this version runs engine: mocker"),
    ]
    replicas: Count = 1
    args: Args = Field(default_factory=dict)
    extra_args: tuple[Text, ...] = ()
    gpus: Gpus | None = None
    host: KnownHost | None = None
    hosts: Annotated[
        tuple[KnownHost, ...],
        Field(min_length=1, validate_default=True),
        BeforeValidator(_candidates),
        AfterValidator(_distinct),
    ] = BLANK
    env: Env = Field(default_factory=dict)
    restart: Restart = Restart()
    stop: Stop = Stop()
    ready: Ready = Ready()


def _etcd_wanted(value: object, info: ValidationInfo) -> object:
    if info.data.get("discovery") != "file":
        return {} if value is None else value
    if value is not None:
        raise allowed("no etcd section with discovery: file")
    return None


def _external(value: object) -> object:
    if isinstance(value, dict):
        raise not_yet("an external etcd by its endpoints")
    return value


class Deployment(Section):
    """The whole file, with hosts resolved. `etcd` is None exactly when `discovery` is `file`."""

    not_yet: ClassVar[Mapping[str, str]] = {"nats": "NATS for planes other than request: tcp and event: zmq"}

    name: Name
    discovery: Annotated[Literal["etcd", "file"], Says("etcd or file"), BeforeValidator(_external)] = "etcd"
    etcd: Annotated[Etcd | None, BeforeValidator(_etcd_wanted), Field(validate_default=True)] = BLANK
    planes: Planes = Planes()
    frontend: Annotated[Frontend, Field(validate_default=True)] = BLANK
    env: Env = Field(default_factory=dict)
    models: Annotated[tuple[Model, ...], Field(min_length=1)]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host that this deployment may use, in the order it names them."""
        named = [self.etcd.host] if self.etcd else []
        named += [self.frontend.host, *(host for model in self.models for host in model.hosts)]
        return tuple(dict.fromkeys(named))


def load_deployment(path: Path, inventory: Inventory) -> Deployment:
    """Read and check one deployment file against an inventory. Raises SpecError with everything that is wrong."""
    return parse_deployment(read(path), inventory, path)


def parse_deployment(text: str, inventory: Inventory, path: Path = Path("deployment.yaml")) -> Deployment:
    """`load_deployment` for text that is no file yet; `path` names it in messages."""
    document = parse(text, path)
    problems = [*document.problems, *clashes(document, tuple(inventory.hosts))]
    known = Context(path.absolute().parent, tuple(inventory.hosts))
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
    hosts, etcd, frontend = deployment.hosts, deployment.etcd, deployment.frontend
    if deployment.discovery == "file" and len(hosts) > 1:
        text = f"found 'file', allowed: etcd, as this deployment uses several hosts ({', '.join(hosts)})"
        yield document.problem(("discovery",), text)
    if etcd and etcd.host == frontend.host and frontend.port in (etcd.port, etcd.peer_port):
        text = f"found {frontend.port}, allowed: a port that etcd does not use ({etcd.port} and {etcd.peer_port})"
        yield document.problem(("frontend", "port"), text)
    yield from gpu_problems(deployment.models, document)
