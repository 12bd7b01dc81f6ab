"""A private key as a program without an agent and without a keyboard finds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import asyncssh


@dataclass(frozen=True, slots=True)
class KeyFile:
    """`wrong`: why it cannot be used; "" if it can. `public`: its line for authorized_keys, where that can be told."""

    path: Path
    wrong: str = ""
    public: str = ""


def key_file(path: Path) -> KeyFile:
    """Reads it and the public one beside it; never raises."""
    public = _public(path)
    try:
        key = asyncssh.read_private_key(path)
    except FileNotFoundError:
        return KeyFile(path, "there is no such file", public)
    except OSError as error:
        return KeyFile(path, f"cannot be read: {error.strerror}", public)
    except ValueError as error:  # asyncssh's errors of keys are of this kind
        locked = "passphrase" in str(error).lower()
        return KeyFile(path, "needs a passphrase" if locked else "is no private key", public)
    return KeyFile(path, "", public or key.export_public_key().decode().strip())


def _public(path: Path) -> str:
    """Its comment says whose it is."""
    beside = path.with_name(path.name + ".pub")
    try:
        asyncssh.read_public_key(beside)
        return beside.read_text().strip()
    except (OSError, ValueError):
        return ""
