from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.control import wire
from supervisor.errors import FileError, HostRefused, HostUnreachable, NorayError, UsageError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(min_size=1), st.dictionaries(st.text(), json_values, max_size=3))
def test_a_request_survives_the_wire_on_one_line(verb: str, args: dict[str, object]) -> None:
    line = wire.encode_request(wire.Request(verb, args))
    assert line.count(b"\n") == 1
    assert wire.decode_request(line) == wire.Request(verb, args)


@given(st.binary())
def test_garbage_is_a_usage_error_and_nothing_worse(garbage: bytes) -> None:
    with pytest.raises(UsageError):
        wire.decode_request(garbage)


@given(st.binary(max_size=60), st.lists(st.integers(1, 7), max_size=30))
def test_lines_do_not_depend_on_where_the_stream_was_cut(stream: bytes, cuts: list[int]) -> None:
    lines, got, at = wire.Lines(1000), [], 0
    for size in [*cuts, len(stream)]:
        lines.feed(stream[at : at + size])
        at += size
        while (line := lines.next()) is not None:
            got.append(line)
    assert got == stream.split(b"\n")[:-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"v":2,"verb":"status"}', "the controller speaks version 1 of the control protocol, this client 2"),
        (b'{"verb":"status"}', "the controller speaks version 1 of the control protocol, this client None"),
        (b'{"v":1}', "a request names no verb"),
        (b'{"v":1,"verb":"status","args":[]}', "the arguments of 'status' are not a JSON object"),
        (b"[]", "a message on the control socket is not a JSON object"),
        (b"[" * 100_000, "a message on the control socket is not JSON"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(line: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        wire.decode_request(line)


def test_a_line_over_the_limit_is_noticed_before_its_end_arrives() -> None:
    lines = wire.Lines(10)
    lines.feed(b"x" * 11)
    with pytest.raises(wire.LineTooLong):
        lines.next()


@pytest.mark.parametrize(
    ("raised", "arrives"),
    [
        (UsageError("a", "b"), UsageError),
        (FileError("a", "b"), UsageError),
        (HostRefused("a", "b"), HostRefused),
        (HostUnreachable("a", "b"), NorayError),
        (NorayError("a", "b"), NorayError),
    ],
)
def test_an_error_keeps_its_words_and_its_exit_code(raised: NorayError, arrives: type[NorayError]) -> None:
    error = wire.decode_error(wire.decode(wire.encode_error(raised))["error"])
    assert (type(error), str(error), error.hint) == (arrives, "a", "b")
