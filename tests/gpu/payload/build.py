"""Build what a GPU machine without a package index is sent: a tar of site-packages and scripts, cut into parts.

    python -m tests.gpu.payload.build OUT           # from requirements.lock: the same wheels give the same bytes
    python -m tests.gpu.payload.build --lock        # pin requirements.in anew
    OUT/unpack VENV                                  # there: make VENV, which runs what was sent on that machine's torch

About 3 GB of room for a while, and minutes of `xz`. The machine must have Python 3.12 and torch 2.11.0+cu130 (`HAS`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements.lock"
PART_MIB = 56
TAGS = ("2_35", "2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
PLATFORMS = [*(f"manylinux_{tag}_x86_64" for tag in TAGS), "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
TARGET = ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp", *(f"--platform={p}" for p in PLATFORMS)]

HAS = re.compile(  # there already: torch and the CUDA libraries that come with it
    r"torch|torchvision|torchaudio|triton|cuda-(bindings|core|pathfinder|python|toolkit)"
    r"|nvidia-(cublas|cuda-cupti|cuda-nvrtc|cuda-runtime|cudnn-cu13|cufft|cufile|curand|cusolver|cusparse|cusparselt-cu13"
    r"|nccl-cu13|nvjitlink|nvshmem-cu13|nvtx)"
)
NOT_NEEDED = re.compile(  # by a tiny model, and large; nvcc is the machine's own
    r"tokenspeed-triton|nvidia-cutlass-dsl-libs-.*|opencv-python-headless|nvidia-(nvvm|cuda-nvcc|cuda-nvdisasm|cuda-cccl|cuda-crt)"
    r"|tilelang|pynvvideocodec|z3-solver|torchcodec"
)
PRUNED = (
    "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
    "vllm/vllm-rs",
    "vllm/third_party/deep_gemm/_C.cpython-31[0134]*",
    "nvidia_cutlass_dsl_packages.pth",
)

UNPACK = """\
#!/bin/sh
# Make a virtual environment of the parts beside this file, over the torch of the python3 that is first in PATH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
torch=$(python3 -c 'import importlib.util as u, pathlib as p; print(p.Path(u.find_spec("torch").origin).parents[1])')
python3 -m venv --without-pip "$1"
site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
(cd "$here" && sha256sum --quiet --check sums)
cat "$here"/part.* | xz -dc -T0 | tar -x -C "$site"
for script in "$site"/bin/*; do
  [ "$(head -c 2 "$script" | tr -d '\\0')" != '#!' ] || sed -i "1s|^#!.*python.*|#!$1/bin/python|" "$script"
  mv "$script" "$1/bin/"
done
echo "$torch" >"$site/torch-of-this-machine.pth"  # last on the path: what was sent goes first
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder for the parts, made if missing")
    parser.add_argument("--lock", action="store_true", help="write requirements.lock from requirements.in")
    parser.add_argument("--wheels", type=Path, help="where wheels are kept from one call to the next")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="payload-", dir=asked.out and asked.out.parent) as scratch:
        wheels = asked.wheels or Path(scratch, "wheels")
        if asked.lock:
            lock(wheels)
        if asked.out:
            build(asked.out, wheels, Path(scratch))


def lock(wheels: Path) -> None:
    """Resolve for the target, download, and write down the one wheel of each distribution that is sent."""
    command = ["uv", "pip", "compile", "--quiet", "--python-version=3.12", "--python-platform=x86_64-manylinux_2_28"]
    told = subprocess.run([*command, str(HERE / "requirements.in")], check=True, capture_output=True, text=True).stdout
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)", told, re.MULTILINE)
    wanted = [f"{name}=={version}" for name, version in pins if not HAS.fullmatch(name) and not NOT_NEEDED.fullmatch(name)]
    pip("download", "--no-deps", *TARGET, "--dest", str(wheels), *wanted)
    by_name = {_distribution(wheel): wheel for wheel in wheels.glob("*.whl")}
    lines = ["# By build.py --lock, from requirements.in. One wheel each."]
    for pin in wanted:
        wheel = by_name[pin.replace("-", "_")]
        lines.append(f"{pin} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    LOCK.write_text("\n".join(lines) + "\n")


def build(out: Path, wheels: Path, scratch: Path) -> None:
    pip("download", "--no-deps", "--require-hashes", *TARGET, "--dest", str(wheels), "-r", str(LOCK))
    site = scratch / "site"
    offline = ["--no-index", "--find-links", str(wheels), "--no-compile", "--no-deps", "--require-hashes"]
    pip("install", *offline, *TARGET, "--target", str(site), "-r", str(LOCK))
    for pattern in PRUNED:
        for path in site.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    pack(site, out)
    unpack = out / "unpack"
    unpack.write_text(UNPACK)
    unpack.chmod(0o755)


def pack(site: Path, out: Path) -> None:
    """Sorted, and without times and owners; in blocks of one size, so that the number of cores does not show either."""
    command = ["xz", "-T0", "-4", "--block-size=24MiB", "-c"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as xz:
        assert xz.stdin is not None
        assert xz.stdout is not None
        if os.fork() == 0:
            xz.stdout.close()
            with tarfile.open(fileobj=xz.stdin, mode="w|", format=tarfile.GNU_FORMAT) as tar:
                for path in _files(site):
                    tar.add(path, path.relative_to(site).as_posix(), recursive=False, filter=_anonymous)
            xz.stdin.close()
            os._exit(0)
        xz.stdin.close()
        sums = []
        while piece := xz.stdout.read(PART_MIB << 20):
            part = out / f"part.{len(sums):02d}"
            part.write_bytes(piece)
            sums.append(f"{hashlib.sha256(piece).hexdigest()}  {part.name}\n")
    if xz.returncode:
        raise SystemExit("xz failed")
    (out / "sums").write_text("".join(sums))


def _files(site: Path) -> Iterator[Path]:
    return (path for path in sorted(site.rglob("*")) if "__pycache__" not in path.parts)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
    return member


def _distribution(wheel: Path) -> str:
    """`nvidia_ml_py-13.1-py3-none-any.whl` -> `nvidia_ml_py==13.1`."""
    name, version = wheel.name.split("-")[:2]
    return f"{name.lower().replace('.', '_')}=={version}"


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
