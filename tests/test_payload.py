"""What a GPU machine is sent: the same wheels give the same bytes, and each is pinned."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.gpu.payload import build

PINS = re.findall(r"^([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$", build.LOCK.read_text(), re.MULTILINE)


def test_every_line_of_the_lock_pins_one_wheel() -> None:
    lines = [line for line in build.LOCK.read_text().splitlines() if line and not line.startswith("#")]
    assert len(PINS) == len(lines) > 100
    names = [name for name, _ in PINS]
    assert len(set(names)) == len(names)
    assert not [name for name in names if build.HAS.fullmatch(name) or build.NOT_NEEDED.fullmatch(name)]


def test_the_lock_has_what_was_asked_for() -> None:
    wanted = re.findall(r"^([a-z0-9.-]+)==(\S+)", (build.HERE / "requirements.in").read_text(), re.MULTILINE)
    assert wanted
    assert set(wanted) <= set(PINS), "run: python -m tests.gpu.payload.build --lock"


def site(folder: Path, age_s: int) -> Path:
    for name, text in {
        "b/module.py": "x = 1\n" * 1000,
        "a.py": "",
        "bin/tool": "#!/usr/bin/python\n",
        "__pycache__/a.pyc": "no",
    }.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        os.utime(file, (age_s, age_s))
    return folder


def test_the_same_files_give_the_same_parts(tmp_path: Path) -> None:
    if shutil.which("xz") is None:
        pytest.skip("no xz on this machine")
    for number in (1, 2):
        (tmp_path / f"out{number}").mkdir()
        build.pack(site(tmp_path / f"site{number}", number * 1000), tmp_path / f"out{number}")
    first, second = (sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("out1", "out2"))
    assert first == second == ["part.00", "sums"]
    assert (tmp_path / "out1" / "part.00").read_bytes() == (tmp_path / "out2" / "part.00").read_bytes()
    said = (tmp_path / "out1" / "sums").read_text()
    assert said == f"{hashlib.sha256((tmp_path / 'out1' / 'part.00').read_bytes()).hexdigest()}  part.00\n"
    with tarfile.open(tmp_path / "out1" / "part.00") as tar:
        assert tar.getnames() == ["a.py", "b", "b/module.py", "bin", "bin/tool"]


def test_the_script_that_unpacks_is_a_shell_script() -> None:
    subprocess.run(["sh", "-n"], input=build.UNPACK, text=True, check=True)
