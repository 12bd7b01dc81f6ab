"""Secrets files: what a value is, and messages that never show one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.spec import SpecError, load_env_file


def written(folder: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "s.env"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def test_values(tmp_path: Path) -> None:
    text = """\
# a comment

PLAIN=a=b
export EXPORTED = spaced out \r
SINGLE='$HOME # "x" '
DOUBLE="it's"
EMPTY=
NOT_A_COMMENT=a#b
"""
    assert load_env_file(written(tmp_path, text)) == {
        "PLAIN": "a=b",
        "EXPORTED": "spaced out",
        "SINGLE": '$HOME # "x" ',
        "DOUBLE": "it's",
        "EMPTY": "",
        "NOT_A_COMMENT": "a#b",
    }


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("hunter2", "found a line that is not KEY=value"),
        ("9A=hunter2", "found a line that is not KEY=value"),
        ("sk-hunter2=x", "found a line that is not KEY=value"),
        ("GOOD=hunter2", "found the key GOOD a second time"),
        ("A='hunter2", "found an opening quote"),
        ("A='hunter2\"", "found an opening quote"),
        ("A='hunter2'x'", "found an opening quote"),
        ("A='", "found an opening quote"),
        ("A=hunter2 # the old one", "found ' #' in a value without quotes"),
        ("A=hunter2\0", "found a NUL byte"),
    ],
)
def test_a_bad_line_is_named_by_its_number_only(tmp_path: Path, line: str, error: str) -> None:
    path = written(tmp_path, f"GOOD=1\n{line}\nALSO GOOD\n")
    with pytest.raises(SpecError) as caught:
        load_env_file(path)
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"{path}:2:1: {error}")
    assert second.startswith(f"{path}:3:1: ")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644, 0o601])
def test_others_may_not_touch_it(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SpecError, match=f"found mode {mode:04o}, allowed: 0600 or stricter"):
        load_env_file(written(tmp_path, "A=b\n", mode))


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_private_modes(tmp_path: Path, mode: int) -> None:
    assert load_env_file(written(tmp_path, "A=b\n", mode)) == {"A": "b"}


def test_a_pipe_a_folder_and_nothing_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", "."):
        with pytest.raises(SpecError, match="is not a regular file"):
            load_env_file(tmp_path / name)
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        load_env_file(tmp_path / "none")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = written(tmp_path, b"A=b\nB=\xffhunter2\n")
    with pytest.raises(SpecError) as caught:
        load_env_file(path)
    assert str(caught.value) == f"{path}:2:3: found a byte that is not UTF-8, allowed: UTF-8 text"
