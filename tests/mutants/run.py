"""Mutants: each guarantee of noray, sabotaged in one line, must turn a test red. A test never seen red proves nothing.

    python tests/mutants/run.py [NAME]... [--jobs N] [--root DIRECTORY] [--limit SECONDS] [--green]

A mutant is `tests/mutants/<name>.patch`, a unified diff with a header:

    # guarantee: a worker that exits with code 0 unasked has failed
    # caught by: tests/core/test_worker.py::test_exit_0_is_a_failure
    diff --git a/supervisor/core/worker.py b/supervisor/core/worker.py
    ...

`caught by` may stand several times. Each test named there must fail: of a parametrised test one case is enough. To make
one: sabotage the line, `git diff > tests/mutants/<name>.patch`, write the header, `git checkout` the file. A patch that
no longer applies is an error too: the guarantee moved, so must its mutant.

How it judges. All named tests run once on an unpatched copy of the tree (tracked files and untracked ones that git does
not ignore), and must be green; with --green they were seen so just now, and are only collected. Then every mutant gets
a copy of its own, and its tests run there. Only pytest's exit code 1 with each named test listed as FAILED is "caught".
0 is "survived"; a broken collection, an error in a fixture, a time-out is "broken": something went wrong, but nobody
saw the guarantee break.

Each copy has an interpreter of its own whose path is the copy and then our packages, so that no editable install leads
back to the unsabotaged tree, in child processes neither. What runs there, and how nothing is left of it: `nursery.py`.
Exit code 0: all caught; 1: not all; 2: bad usage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from queue import Queue

TIMED_OUT = 124  # as nursery.py says it
COMMON = ("asyncio", "anyio", "trio.testing", "hypothesis.strategies", "pydantic", "httpx", "structlog", "asyncssh", "yaml")


@dataclass(frozen=True)
class Mutant:
    name: str
    file: Path
    guarantee: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    word: str  # caught, survived, broken
    detail: str = ""
    took_s: float = 0.0


def read(file: Path) -> Mutant:
    header = {"guarantee": list[str](), "caught by": list[str]()}
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"#\s*(guarantee|caught by):\s*(.+)", line):
            header[match[1]].append(match[2].strip())
        elif not line.startswith("#"):
            break
    if not all(header.values()):
        raise ValueError("the header lacks '# guarantee:' or '# caught by:'")
    return Mutant(file.stem, file, " ".join(header["guarantee"]), tuple(header["caught by"]))


def copy_tree(root: Path, target: Path) -> None:
    argv = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        source = root / name
        if source.is_file() or source.is_symlink():  # not one deleted and not yet committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def interpreter(tree: Path) -> Path:
    """An interpreter whose `supervisor` is the copy's, with our packages and programs behind it."""
    home = tree / ".venv"
    venv.EnvBuilder(symlinks=True).create(home)
    packages = next(home.glob("lib/python3*/site-packages"))
    ours = dict.fromkeys((str(tree), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    # Named in a .pth file, our site-packages is searched, but its own .pth files (editable installs) are not obeyed.
    (packages / "copy.pth").write_text("\n".join(ours) + "\n")
    scripts = tomllib.loads((tree / "pyproject.toml").read_text()).get("project", {}).get("scripts", {})
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        script = home / "bin" / name
        script.write_text(f"#!{home}/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
    for program in Path(sysconfig.get_path("scripts")).iterdir():
        here = home / "bin" / program.name
        if not here.exists() and not program.name.startswith(("python", "activate", "Activate")):
            here.symlink_to(program)
    return home / "bin" / "python"


class Nursery:
    """An interpreter that runs one pytest at a time, in any copy of `clean`."""

    def __init__(self, clean: Path, *imports: str) -> None:
        argv = [str(clean / ".venv" / "bin" / "python"), str(Path(__file__).with_name("nursery.py")), str(clean), *imports]
        self._process = subprocess.Popen(argv, env=environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, tree: Path, words: tuple[str, ...], limit_s: float) -> tuple[int, str]:
        """pytest's exit code, and what it said. `tree` has an interpreter of its own then."""
        interpreter(tree)
        temporary, output = tree.with_name(tree.name + ".t"), tree.with_name(tree.name + ".out")
        temporary.mkdir()
        # `-rfE` lists failures and errors apart. What a test that failed leaves open is no news, and would cost that list.
        quiet = ("-p", "no:cacheprovider", "-p", "no:unraisableexception")
        argv = ["-q", "--tb=short", "-rfE", *quiet, f"--basetemp={temporary}/p", *words]
        # Half the patience: most mutants make a test wait in vain. That it is enough is seen first (not with --green).
        env = environment() | {"TMPDIR": str(temporary), "NO_COLOR": "1", "NORAY_TEST_PATIENCE": "0.5"}
        job = {"tree": str(tree), "argv": argv, "env": env, "limit_s": limit_s, "output": str(output)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        shutil.rmtree(temporary, ignore_errors=True)
        return code, output.read_text(errors="replace")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def jobs_at_once(jobs: int) -> tuple[str, ...]:
    return ("--numprocesses", str(jobs), "--dist", "loadfile") if jobs > 1 else ()


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}


def judge(mutant: Mutant, nursery: Nursery, clean: Path, limit_s: float) -> Verdict:
    began = time.monotonic()

    def verdict(word: str, detail: str = "") -> Verdict:
        return Verdict(word, detail, time.monotonic() - began)

    place = clean.parent
    tree = Path(tempfile.mkdtemp(prefix="", dir=place))  # short: unix socket paths must fit below it
    tree.chmod(0o755)
    # With what was compiled, which is valid by its source's time. Links: git and Python replace files, they write into none.
    skipped = shutil.ignore_patterns(".venv", ".hypothesis")
    shutil.copytree(clean, tree, symlinks=True, dirs_exist_ok=True, ignore=skipped, copy_function=os.link)
    # Below a repository `git apply` would silently skip what lies outside of it.
    outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(place)}
    applied = subprocess.run(
        ["git", "apply", str(mutant.file.resolve())], cwd=tree, env=outside, text=True, capture_output=True, check=False
    )
    if applied.returncode:
        return verdict("broken", "the patch does not apply:\n" + applied.stderr)
    # Bytecode is valid by its source's size and whole second: a patch of the same size may come within that second.
    for file in re.findall(r"^\+\+\+ b/(.+\.py)$", mutant.file.read_text(encoding="utf-8"), re.MULTILINE):
        Path(cache_from_source(tree / file)).unlink(missing_ok=True)
    code, output = nursery.run(tree, mutant.tests, limit_s)
    shutil.rmtree(tree, ignore_errors=True)
    if code == 0:
        return verdict("survived", "every test named stayed green")
    if code == TIMED_OUT:
        return verdict("broken", f"not done after {limit_s:g} s")
    if code != 1:
        return verdict("broken", f"pytest ended with {code}\n{output[-3000:]}")
    failed = re.findall(r"^FAILED (\S+)", output, re.MULTILINE)
    green = [test for test in mutant.tests if not any(_is_case_of(node, test) for node in failed)]
    if green:
        word = "broken" if re.search(r"^ERROR ", output, re.MULTILINE) else "survived"
        return verdict(word, f"did not fail: {', '.join(green)}\n{output[-3000:]}")
    return verdict("caught")


def judged(mutants: list[Mutant], clean: Path, jobs: int, limit_s: float, green: bool) -> dict[str, Verdict]:
    """By name. Raises NotGreen."""
    nurseries = Queue[Nursery]()
    imports = COMMON if len(mutants) > jobs else ()
    made = [Nursery(clean, *imports) for _ in range(min(jobs, len(mutants)))]
    try:
        named = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        words = ("--collect-only",) if green else jobs_at_once(jobs) if len(named) > 20 else ()
        code, output = made[0].run(clean, (*words, *named), limit_s * 2)
        if code:
            raise NotGreen(f"{output[-6000:]}\nmutants: cannot judge: without any sabotage pytest ended with {code}")
        for nursery in made:
            nurseries.put(nursery)

        def one(mutant: Mutant) -> Verdict:
            nursery = nurseries.get()
            try:
                return judge(mutant, nursery, clean, limit_s)
            finally:
                nurseries.put(nursery)

        with ThreadPoolExecutor(jobs) as pool:
            return dict(zip((mutant.name for mutant in mutants), pool.map(one, mutants), strict=True))
    finally:
        for nursery in made:
            nursery.close()


class NotGreen(Exception):
    pass


def _is_case_of(node: str, test: str) -> bool:
    return node == test or node.startswith((f"{test}[", f"{test}::"))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these mutants")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="the tree to sabotage")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once (default 2)")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="for one pytest (default 300)")
    parser.add_argument("--green", action="store_true", help="all tests were just seen green, as in CI")
    options = parser.parse_args(argv)
    files = sorted((options.root / "tests" / "mutants").glob("*.patch"))
    if unknown := set(options.names) - {file.stem for file in files}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    files = [file for file in files if not options.names or file.stem in options.names]

    verdicts: dict[str, Verdict] = {}
    mutants: list[Mutant] = []
    for file in files:
        try:
            mutants.append(read(file))
        except ValueError as error:
            verdicts[file.stem] = Verdict("broken", str(error))
    if mutants:
        with tempfile.TemporaryDirectory(prefix="m", ignore_cleanup_errors=True) as directory:
            os.chmod(directory, 0o755)  # tests as an ordinary user pass here
            clean = Path(directory) / "clean"
            copy_tree(options.root, clean)
            interpreter(clean)
            try:
                verdicts |= judged(mutants, clean, options.jobs, options.limit, options.green)
            except NotGreen as error:
                print(error)
                return 1
    return report(files, {mutant.name: mutant.guarantee for mutant in mutants}, verdicts)


def report(files: list[Path], guarantees: dict[str, str], verdicts: dict[str, Verdict]) -> int:
    width = max((len(file.stem) for file in files), default=0)
    for file in files:
        verdict = verdicts[file.stem]
        print(f"{verdict.word:9}{verdict.took_s:6.1f} s  {file.stem:{width}}  {guarantees.get(file.stem, '')}")
        for line in verdict.detail.splitlines():
            print(f"    {line}")
    caught = sum(verdict.word == "caught" for verdict in verdicts.values())
    print(f"mutants: {caught} of {len(files)} caught")
    return 0 if caught == len(files) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
