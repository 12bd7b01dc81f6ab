"""Ids of runs: they sort by the time at which they were given, whoever gave them."""

from __future__ import annotations

BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: sorts like the numbers it stands for


def run_id(at_ms: int, count: int) -> str:
    """Sortable by time, short enough to type: 9 characters of milliseconds, 2 of a counter."""
    number, text = (at_ms << 10) | (count & 0x3FF), ""
    for _ in range(11):
        text = BASE32[number & 31] + text
        number >>= 5
    return text


def run_ms(run: str) -> int:
    """The milliseconds in an id; 0 for one that is none of ours."""
    if len(run) != 11 or not set(run) <= set(BASE32):
        return 0
    number = 0
    for letter in run:
        number = number * 32 + BASE32.index(letter)
    return number >> 10
