"""pydantic's errors as problems: where it stands, what was found, what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from supervisor.spec.document import Document
from supervisor.spec.problem import Loc, Problem, did_you_mean, kind, listed, show, where
from supervisor.spec.words import Says, Section


def from_pydantic(error: ValidationError, document: Document, root: type[Section]) -> Iterator[Problem]:
    """Problems of a document that was validated as `root`, less those that only follow from one already known."""
    known = {problem.place for problem in document.problems}
    for detail in error.errors(include_url=False):
        problem = _problem(detail, document, root)
        unread = detail["input"] is None and problem.place in known  # a value that could not be read became None
        uncounted = detail["type"] == "too_short" and detail["input"]  # pydantic counts the valid entries only
        if not unread and not uncounted:
            yield problem


def _problem(detail: ErrorDetails, document: Document, root: type[Section]) -> Problem:
    loc, found = document.written(detail["loc"]), detail["input"]
    phrase = str(detail.get("ctx", {}).get("phrase", ""))
    if loc and loc[-1] == "[key]":
        text = f"found the key {show(found)}, allowed: {phrase}"
        return Problem(document.path, document.key_place(loc[:-1]), where(loc[:-2]), text)
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(loc, document, root)
        case "missing":
            text = f"missing, allowed: {_phrase(root, loc)}"
            return document.problem(loc, text)
        case "not_yet":
            text = f"found {_found(loc, found)}: not yet built in this version (planned: {phrase})"
            return document.problem(loc, text)
        case "allowed":
            return document.problem(loc, f"found {_found(loc, found)}, allowed: {phrase}")
        case "too_short":
            return document.problem(loc, f"found {kind(found)}, allowed: at least one entry")
        case "tuple_type":
            return document.problem(loc, f"found {_found(loc, found)}, allowed: a list")
        case "model_type" | "dict_type" | "mapping_type":
            section = _section(root, loc)
            keys = f" with the keys {listed(section.model_fields)}" if section else ""
            return document.problem(loc, f"found {_found(loc, found)}, allowed: a mapping{keys}")
        case _:
            return document.problem(loc, f"found {_found(loc, found)}: {detail['msg']}")


def _unknown_key(loc: Loc, document: Document, root: type[Section]) -> Problem:
    place, key, section = document.key_place(loc), str(loc[-1]), _section(root, loc[:-1])
    fields = section.model_fields if section else {}
    later = section.not_yet.get(key) if section else None
    if later:
        return Problem(document.path, place, where(loc), f"not yet built in this version (planned: {later})")
    if section and key in section.never:
        text = f"found the key {show(key)}, allowed: only of a model; never of this, as {section.never[key]}"
        return Problem(document.path, place, where(loc[:-1]), text)
    if section and key in section.elsewhere:
        text = f"found the key {show(key)}, allowed: not in this file; {section.elsewhere[key]}"
        return Problem(document.path, place, where(loc[:-1]), text)
    text = f"unknown key {show(key)}{did_you_mean(key, fields)}; allowed: {listed(fields)}"
    return Problem(document.path, place, where(loc[:-1]), text)


def _found(loc: Loc, value: object) -> str:
    # Somebody will put a token into env one day, or a password into a URL, and a mistake must not put it on a screen.
    return kind(value) if "env" in loc or ("endpoints" in loc and "@" in str(value)) else show(value)


def _phrase(root: type[Section], loc: Loc) -> str:
    section = _section(root, loc[:-1])
    field = section.model_fields[str(loc[-1])] if section else None
    for note in field.metadata if field else ():
        if isinstance(note, Says):
            return note.phrase
    is_list = field and get_origin(_bare(field.annotation)) is tuple
    return "a list with at least one entry" if is_list else "a mapping with at least one entry"


def _section(root: type[Section], loc: Loc) -> type[Section] | None:
    """The section that stands at `loc`, found by walking the types of the models."""
    at: Any = root
    for part in loc:
        at = _bare(at)
        if _is_section(at):
            field = at.model_fields.get(part)
            at = field.annotation if field else None
        else:
            at = (get_args(at) or (None,))[-1 if get_origin(at) is not tuple else 0]
    at = _bare(at)
    return at if _is_section(at) else None


def _bare(kind: Any) -> Any:
    while get_origin(kind) in (Annotated, Union, UnionType):
        kind = get_args(kind)[0]
    return kind


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
