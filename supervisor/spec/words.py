"""The small types that both files are made of, each with the one phrase that tells a human what is allowed.

`Annotated[int, Field(ge=0), Says("an integer of at least 0")]`: whatever is wrong with the value, wrong type or wrong
number, the message is that phrase; the same words become the description in the JSON schema.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from supervisor.spec.problem import did_you_mean, listed

BLANK: Any = None  # a default that a validator replaces: it depends on other keys, or on the inventory


@dataclass(frozen=True, slots=True)
class Context:
    """What validators know beside the file. `folder` is where its relative paths start."""

    folder: Path
    hosts: tuple[str, ...] = ()
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of those hosts that have any


def context(info: ValidationInfo) -> Context:
    """What the loader gave to the validation that is going on."""
    return cast(Context, info.context)


@dataclass(frozen=True, slots=True)
class Says:
    """Replaces every complaint about a type by one phrase: what would have been allowed."""

    phrase: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "description": self.phrase}

    def _check(self, value: object, inner: Callable[[object], object]) -> object:
        try:
            return inner(value)
        except ValidationError:
            raise allowed(self.phrase) from None


def allowed(phrase: str) -> PydanticCustomError:
    """To be raised by a validator: the value is not what `phrase` describes."""
    return PydanticCustomError("allowed", "{phrase}", {"phrase": phrase})


def not_yet(plan: str) -> PydanticCustomError:
    """To be raised by a validator: the value belongs to a later version, which will do what `plan` says."""
    return PydanticCustomError("not_yet", "{phrase}", {"phrase": plan})


def distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    """A list of hosts that names none twice."""
    if len(set(value)) < len(value):
        raise allowed("each host once")
    return value


def planned(values: Collection[object], plan: str) -> BeforeValidator:
    """Refuses values that a later version will know, as "not yet" and not as wrong."""

    def check(value: object) -> object:
        # By type too: True == 1 would make `true` a count that is planned.
        if any(type(value) is type(later) and value == later for later in values):
            raise not_yet(plan)
        return value

    return BeforeValidator(check)


class Section(BaseModel):
    """A mapping with known keys. Written but left blank (`gpu01:`) it is the section with all its defaults."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    not_yet: ClassVar[Mapping[str, str]] = {}  # key -> what a later version will do with it
    never: ClassVar[Mapping[str, str]] = {}  # key of another section -> why not of this one
    elsewhere: ClassVar[Mapping[str, str]] = {}  # key of no section -> what to write instead, and where

    @model_validator(mode="before")
    @classmethod
    def _blank(cls, value: object) -> object:
        return {} if value is None else value


NAME = r"^[a-z0-9][a-z0-9-]{0,38}$"

Name = Annotated[
    str,
    Field(pattern=NAME),
    Says("a name of 1 to 39 characters: a-z, 0-9 and -, not starting with - ([a-z0-9][a-z0-9-]{0,38})"),
]
Text = Annotated[str, Says("text (numbers, true and false in quotes)")]
Word = Annotated[str, Field(pattern=r"^[!-~]{1,255}$"), Says("1 to 255 printable ASCII characters without spaces")]
Count = Annotated[int, Field(ge=0, le=10_000), Says("an integer of at least 0 (and at most 10000)")]
Port = Annotated[int, Field(ge=1, le=65535), Says("a port: an integer from 1 to 65535")]
Seconds = Annotated[float, Field(ge=0, le=1e7), Says("seconds: a number of at least 0 (and at most 1e7)")]
Span = Annotated[float, Field(gt=0, le=1e7), Says("seconds: a number greater than 0 (and at most 1e7)")]

_MODEL = r"^(/[^\x00-\x1f\x7f]*|[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?)$"
ModelPath = Annotated[str, Field(pattern=_MODEL), Says("an absolute path on the hosts, or a hub id such as Qwen/Qwen3-0.6B")]
HostPath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]*$"), Says("an absolute path on the host")]
Interpreter = Annotated[
    str,
    Field(pattern=r"^/[A-Za-z0-9_./+-]+$"),
    Says("the absolute path of a Python interpreter on the host, of the characters A-Z a-z 0-9 _ . / + - only"),
]
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,252}$"), Says("a host name or an IP address")]
Login = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}$"), Says("a login name")]

ArgName = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]{0,99}$"), Says("a flag of the program in snake_case, such as max_model_len")
]
OURS = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
OURS_PHRASE = "any other; noray sets this one for every process (list a model's GPUs under its key `gpus`)"


def _not_ours(value: str) -> str:
    if value in OURS:
        raise allowed(OURS_PHRASE)
    return value


EnvName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$"),
    Says("a variable name of A-Z a-z 0-9 _, not starting with a digit"),
    AfterValidator(_not_ours),
]
_LABEL = r"^[A-Za-z0-9]([A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?$"
_LABEL_SAYS = Says("1 to 63 characters: A-Z a-z 0-9 and, between them, _ . / - (numbers, true and false in quotes)")
Label = Annotated[str, Field(pattern=_LABEL), _LABEL_SAYS]
Plain = Annotated[object, WithJsonSchema({})]  # whatever YAML can say: the document reader lets nothing else through

_BLANK_IS_EMPTY = BeforeValidator(lambda value: {} if value is None else value)
Args = Annotated[Mapping[ArgName, Plain], _BLANK_IS_EMPTY]
Env = Annotated[Mapping[EnvName, Text], _BLANK_IS_EMPTY]
Labels = Annotated[Mapping[Label, Label], _BLANK_IS_EMPTY]


def _ip(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise allowed("an IP address of the host, such as 10.1.0.11 or 0.0.0.0") from None
    return value


IpAddress = Annotated[str, Says("an IP address"), AfterValidator(_ip)]


def _known(value: str, info: ValidationInfo) -> str:
    hosts = context(info).hosts
    if value not in hosts:
        raise allowed(f"a host of the inventory ({listed(hosts)}){did_you_mean(value, hosts)}")
    return value


KnownHost = Annotated[str, Says("the name of a host of the inventory"), AfterValidator(_known)]


def _local_path(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str) or not value:
        return value  # refused by the type
    try:
        return (context(info).folder / Path(value).expanduser()).absolute()
    except RuntimeError:
        raise allowed("a path whose ~ names a known user") from None


LocalPath = Annotated[
    Path,
    Says("a path on this machine, absolute or relative to this file"),
    BeforeValidator(_local_path),
    WithJsonSchema({"type": "string", "description": "a path on this machine, absolute or relative to this file"}),
]

_PORTS = "a range of ports from 1024 to 65535, lowest first, such as 18000-19999"


def _port_range(value: object) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{4,5})-([0-9]{4,5})", value) if isinstance(value, str) else None
    low, high = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1024 <= low <= high <= 65535:
        raise allowed(_PORTS)
    return low, high


PortRange = Annotated[
    tuple[int, int],
    BeforeValidator(_port_range),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{4,5}-[0-9]{4,5}$", "description": _PORTS}),
]
