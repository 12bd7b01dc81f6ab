"""The C library, for what Python has no call for, or not in every build."""

from __future__ import annotations

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
