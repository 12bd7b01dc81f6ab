"""The host side as one content-addressed zipapp, built in memory from the files beside this package.

Equal sources give equal bytes (sorted, fixed timestamps), so a host that has the name has the content, and each
version is sent to each host once. The host side is read as files and never imported: it belongs to another Python.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "noray_host"
HOSTSIDE = Path(__file__).parent.parent / "hostside"

MAIN = f"""\
import sys
from {PACKAGE}.main import main

sys.exit(main(sys.argv[1], sys.argv[2]))
"""


@dataclass(frozen=True, slots=True)
class Bundle:
    name: str
    data: bytes = field(repr=False)


@functools.cache
def build(package_dir: Path = HOSTSIDE) -> Bundle:
    members = {f"{PACKAGE}/{path.name}": path.read_bytes() for path in package_dir.glob("*.py")}
    members.setdefault(f"{PACKAGE}/__init__.py", b"")
    members["pynvml.py"] = _pynvml()
    members["__main__.py"] = MAIN.encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # unix, whatever builds it
            info.external_attr = 0o644 << 16
            archive.writestr(info, members[name])
    data = buffer.getvalue()
    return Bundle(name=f"noray-{hashlib.sha256(data).hexdigest()[:16]}.pyz", data=data)


def _pynvml() -> bytes:
    spec = importlib.util.find_spec("pynvml")
    if spec is None or spec.origin is None:
        raise RuntimeError("nvidia-ml-py, a dependency of noray, is not installed")
    return Path(spec.origin).read_bytes()
