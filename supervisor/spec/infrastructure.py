"""What every Dynamo process of a deployment leans on: discovery, the etcd that serves it, and the planes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, PrivateAttr, ValidationInfo
from pydantic_core import CoreSchema

from supervisor.spec.problem import listed
from supervisor.spec.words import BLANK, KnownHost, Port, Says, Section, allowed, context, distinct, planned


def _next_port(value: object, info: ValidationInfo) -> object:
    return info.data.get("port", 2379) + 1 if value is None else value


def _other_port(value: int, info: ValidationInfo) -> int:
    if value == info.data.get("port"):
        raise allowed("a port other than etcd.port")
    return value


def _third_port(value: object, info: ValidationInfo) -> object:
    return info.data.get("peer_port", 2380) + 1 if value is None else value


def _none_of_both(value: int, info: ValidationInfo) -> int:
    if value in (info.data.get("port"), info.data.get("peer_port")):
        raise allowed("a port other than etcd.port and etcd.peer_port")
    return value


def _odd(value: object) -> object:
    if value not in MEMBERS or type(value) is not int:
        raise allowed("1 or 3 (of three one may be away; two are no safer than one)")
    return value


def _seats(value: object, info: ValidationInfo) -> object:
    """The hosts of the members: those that are named, else the first of the inventory."""
    host, members, known = info.data.get("host"), info.data.get("members", 1), context(info).hosts
    if host and value is not None:
        raise allowed("host or hosts, not both")
    if host and members > 1:
        raise allowed(f"hosts, a list of {members}; or neither of host and hosts")
    if value is None and len(known) < members:
        raise allowed(f"an inventory with {members} hosts for members: {members}, each on its own (it has {listed(known)})")
    return value if value is not None else (host,) if host else known[:members]


def _one_each(value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    members = info.data.get("members", 1)
    if len(value) != members:
        raise allowed(f"{members} of them, one for each of its members")
    return value


def _first(value: object, info: ValidationInfo) -> object:
    return context(info).hosts[0] if value is None else value


Ttl = Annotated[int, Field(ge=1, le=86_400), Says("whole seconds: an integer from 1 to 86400")]
ENDPOINT = "the URL of a member, such as http://10.0.0.5:2379 or https://etcd-1.lab:2379"
DISCOVERIES = ("etcd", "file")
CREDENTIALS = "ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD stand in the env_file of the hosts"

MEMBERS = (1, 3)


class Etcd(Section):
    """The etcd that noray runs for this deployment: one member on each of `hosts`. `lease_ttl` is in whole seconds.

    `gateway_port`: of three members; where Dynamo's processes find them on their own host.
    """

    never: ClassVar[Mapping[str, str]] = {"on_lost": "its data is where it ran", "lost_after": "its data is where it ran"}

    members: Annotated[Literal[1, 3], BeforeValidator(_odd)] = 1
    host: KnownHost | None = None
    hosts: Annotated[
        tuple[KnownHost, ...],
        Field(validate_default=True),
        BeforeValidator(_seats),
        AfterValidator(distinct),
        AfterValidator(_one_each),
    ] = BLANK
    port: Port = 2379
    peer_port: Annotated[Port, BeforeValidator(_next_port), AfterValidator(_other_port), Field(validate_default=True)] = BLANK
    gateway_port: Annotated[Port, BeforeValidator(_third_port), AfterValidator(_none_of_both), Field(validate_default=True)] = (
        BLANK
    )
    lease_ttl: Ttl = 60


class Planes(Section):
    """How Dynamo's processes talk to each other."""

    request: Annotated[Literal["tcp", "nats"], Says("tcp or nats"), planned(("http",), "request: http")] = "tcp"
    event: Annotated[Literal["zmq", "nats"], Says("zmq or nats")] = "zmq"


class Nats(Section):
    """The NATS that noray runs for this deployment, when a plane goes over it."""

    never: ClassVar[Mapping[str, str]] = {"on_lost": "clients know it by its host", "lost_after": "clients know it by its host"}

    host: Annotated[KnownHost, BeforeValidator(_first), Field(validate_default=True)] = BLANK
    port: Port = 4222


def nats_wanted(value: object, info: ValidationInfo) -> object:
    planes = info.data.get("planes")
    if planes is None or "nats" in (planes.request, planes.event):
        return {} if value is None else value
    if value is not None:
        raise allowed("no nats section, as no plane goes over it (planes: {request: nats, event: nats})")
    return None


def _endpoint(value: str) -> str:
    try:
        found = urlsplit(value)
        port = found.port or 2379
    except ValueError:
        raise allowed(ENDPOINT) from None
    if "@" in found.netloc:
        raise allowed(f"no user in it: {CREDENTIALS}")
    if found.scheme not in ("http", "https") or not found.hostname or found.path.strip("/") or found.query or found.fragment:
        raise allowed(ENDPOINT)
    host = f"[{found.hostname}]" if ":" in found.hostname else found.hostname
    return f"{found.scheme}://{host}:{port}"


def _alike(value: tuple[str, ...]) -> tuple[str, ...]:
    if len({url.partition(":")[0] for url in value}) > 1:
        raise allowed("all http or all https")
    if len(set(value)) < len(value):
        raise allowed("each member once")
    return value


class Discovery(Section):
    """Where Dynamo's processes find each other: an etcd of ours, a directory, or the members of an etcd that others run.

    `lease_ttl` is in whole seconds. `gateway_port`: as of etcd, for several members over http. Credentials stand in env files.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {"user": CREDENTIALS, "username": CREDENTIALS, "password": CREDENTIALS}

    endpoints: Annotated[
        tuple[Annotated[str, Says(ENDPOINT), AfterValidator(_endpoint)], ...],
        Field(min_length=1),
        AfterValidator(_alike),
    ]
    gateway_port: Port = 2381
    lease_ttl: Ttl = 60
    _word: str = PrivateAttr("")

    @classmethod
    def named(cls, word: str) -> Discovery:
        made = cls.model_construct(endpoints=())
        made._word = word
        return made

    @property
    def backend(self) -> str:
        """As Dynamo calls it: etcd or file."""
        return self._word or "etcd"

    @property
    def ours(self) -> bool:
        """An etcd that noray runs."""
        return self._word == "etcd"


class OrWord:
    """In the schema: a word instead of the section."""

    def __get_pydantic_json_schema__(self, source: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(DISCOVERIES), "type": "string"}, handler(source)]}


def discovered(value: object) -> object:
    if isinstance(value, dict | Discovery):
        return value
    if value is None:
        return Discovery.named("etcd")
    if value not in DISCOVERIES:
        raise allowed("etcd, file, or the endpoints of an external etcd ({endpoints: [http://10.0.0.5:2379]})")
    return Discovery.named(str(value))
