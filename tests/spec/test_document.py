"""Text that is hardly YAML, and YAML that is hardly a file: always a SpecError with a place, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.spec import SpecError, load_deployment, parse_deployment
from supervisor.spec.document import parse

from .reading import TWO, deployment_errors

PATH = Path("d.yaml")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "d.yaml:1:1: the file is empty"),
        ("# only this\n", "d.yaml:1:1: the file is empty"),
        ("name: lab\nmodels: [1\nb: 2\n", "d.yaml:3:2: not YAML: expected ',' or ']', but got ':'"),
        ("name: lab\n\tmodels: []\n", "d.yaml:2:1: found a tab, allowed: spaces for indentation"),
        ("name:\tlab\n", "d.yaml:1:6: found a tab, allowed: spaces for indentation"),
        ("name: lab\n---\nname: b\n", "d.yaml:2:1: not YAML: found another document"),
        ("name: a\x07b\n", "d.yaml:1:8: found the character '\\x07', allowed: printable text"),
        ("[" * 5000, "d.yaml:1:41: not YAML that can be read: nested deeper than 40 levels"),
    ],
)
def test_syntax_errors_have_a_place(text: str, error: str) -> None:
    assert deployment_errors(text) == [error]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", "d.yaml:2:11: b: duplicate key 'c' (first on line 2), allowed: each key once"),
        ("a: 1\n\na: 2\n", "d.yaml:3:1: duplicate key 'a' (first on line 1), allowed: each key once"),
        ("a: 1\n2: b\n", "d.yaml:2:1: found the key 2, allowed: text as keys (numbers in quotes)"),
        ("a: &x [1, *x]\n", "d.yaml:1:4: a[1]: found an alias to the value it stands in, allowed: values that end"),
        ("a: !include b\n", "d.yaml:1:4: a: found a YAML tag, allowed: plain values"),
        ("a: !!set {b}\n", "d.yaml:1:4: a: found a YAML tag, allowed: plain values"),
        ("a: [.nan]\n", "d.yaml:1:5: a[0]: found '.nan', allowed: a finite number of ordinary length"),
        (
            'a: "\\0"\n',
            "d.yaml:1:4: a: found text with a NUL or half a surrogate pair, allowed: text that is valid UTF-8",
        ),
        (
            "a: &x {b: 1}\nc:\n  <<: *x\n",
            "d.yaml:3:3: c: merge keys (<<) are not read, allowed: the keys written out, or an alias",
        ),
    ],
)
def test_values_that_are_refused(text: str, error: str) -> None:
    assert [str(problem) for problem in parse(text, PATH).problems] == [error]


def test_an_integer_of_thousands_of_digits_is_refused_and_not_shown_in_full() -> None:
    (problem,) = parse(f"a: {'9' * 9000}\n", PATH).problems
    assert problem.place == (1, 4)
    assert len(str(problem)) < 200


def test_aliases_of_aliases_cannot_grow_without_end() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    with pytest.raises(SpecError, match="more than 20000 values"):
        parse("\n".join(lines), PATH)


def test_values_are_yaml_1_2() -> None:
    text = "{a: yes, b: 010, c: 0x1F, d: 1_000, e: 1.5e3, f: 2024-01-02, g: ~, h: 22:22, i: &x [1], j: *x, k: -0o17}"
    assert parse(text, PATH).data == {
        "a": "yes",
        "b": 10,
        "c": 31,
        "d": 1000,
        "e": 1500.0,
        "f": "2024-01-02",
        "g": None,
        "h": "22:22",
        "i": (1,),
        "j": (1,),
        "k": -15,
    }


def test_an_anchor_may_be_set_again() -> None:
    assert parse("[&a 1, *a, &a 2, *a]", PATH).data == (1, 1, 2, 2)


def test_every_key_and_value_keeps_its_place() -> None:
    document = parse("a:\n  - b: 1\n    c:   x\n", PATH)
    assert document.keys == {("a",): (1, 1), ("a", 0, "b"): (2, 5), ("a", 0, "c"): (3, 5)}
    assert document.values == {
        (): (1, 1),
        ("a",): (2, 3),
        ("a", 0): (2, 5),
        ("a", 0, "b"): (2, 8),
        ("a", 0, "c"): (3, 10),
    }


@pytest.mark.parametrize(
    "line", ["TOKEN: *hunter2", "TOKEN: !hunter2 x", "TOKEN: &hunter2 [", "TOKEN: !e!hunter2 x", "T: !!int hunter2"]
)
def test_no_message_repeats_a_word_that_may_be_a_secret(line: str) -> None:
    errors = deployment_errors(f"name: lab\nenv:\n  {line}\n")
    assert errors
    assert "hunter2" not in "\n".join(errors)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"name: lab\n# caf\xe9\n", ":2:6: found a byte that is not UTF-8, allowed: UTF-8 text"),
        ("é: é \xff".encode("latin-1"), ":1:1: found a byte that is not UTF-8, allowed: UTF-8 text"),
        (b"#" * (2 << 20), ": is larger than 1048576 bytes"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, raw: bytes, error: str) -> None:
    path = tmp_path / "d.yaml"
    path.write_bytes(raw)
    with pytest.raises(SpecError) as caught:
        load_deployment(path, TWO)
    assert str(caught.value) == f"{path}{error}"


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_deployment(tmp_path / "none.yaml", TWO)
    assert str(caught.value) == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"
    with pytest.raises(SpecError) as caught:
        load_deployment(tmp_path, TWO)
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory"


YAML_LIKE = st.text(alphabet="ab:- \n[]{}&*!|>'\"#%@0.9,?<~\t\\é", max_size=60)


@given(YAML_LIKE | st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_whatever_the_text_only_a_spec_error_comes_out(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_deployment(text, TWO, PATH)
    assert all(problem.path == PATH for problem in caught.value.problems)
