"""What a run leaves in /dev/shm: vLLM's and NCCL's segments outlive a SIGKILL, and fill the memory until the next start fails.

A segment carries no owner's pid, so it is the run's only if a process of its tree was seen to have it mapped or open. New
files are looked for once a second, in maps(5) only while there is a new one. Whatever was made and abandoned between two
looks stays, for nobody can say whose it was.
"""

from __future__ import annotations

import os
from typing import Dict, Iterable, List, Set, Tuple

from . import procfs

FOLDER = "/dev/shm"
LOOKS = 3  # at a new file; whoever made it has it open by then, or it is not one of ours


class Segments:
    def __init__(self, since_s: float, ours: Dict[str, int]) -> None:
        """`since_s`: wall clock; what is older was there before the run. `ours`: name -> inode, of an earlier keeper."""
        self.since_s, self.ours = since_s, dict(ours)
        self._looked: Dict[Tuple[str, int], int] = {}  # (name, inode) -> how often

    def look(self, pids: Iterable[int]) -> None:
        """Learn which new files the processes of the tree use."""
        fresh = {inode: name for name, inode in self._files() if self.ours.get(name) != inode}
        self._looked = {(name, inode): self._looked.get((name, inode), 0) + 1 for inode, name in fresh.items()}
        fresh = {inode: name for inode, name in fresh.items() if self._looked[name, inode] <= LOOKS}
        if fresh:
            self.ours.update((fresh[inode], inode) for pid in pids for inode in used_by(pid) if inode in fresh)

    def remove(self) -> str:
        """Unlink what nobody uses any more. The tree must be gone. What was done, as a sentence; empty if nothing."""
        there = [name for name, inode in self._files() if self.ours.get(name) == inode]
        if not there:
            return ""
        used: Set[int] = set()
        for process in procfs.everybody():
            used.update(used_by(process.pid))
        removed: List[str] = []
        size = 0
        for name in there:
            path = os.path.join(FOLDER, name)
            try:
                if self.ours[name] in used:
                    continue
                size += os.stat(path).st_blocks * 512
                os.unlink(path)
                removed.append(name)
            except OSError:
                continue  # somebody else was quicker
        return "removed %d segments (%d MiB) that it left in %s" % (len(removed), size >> 20, FOLDER) if removed else ""

    def _files(self) -> List[Tuple[str, int]]:
        """(name, inode) of this user's files made since the run began."""
        found: List[Tuple[str, int]] = []
        try:
            entries = list(os.scandir(FOLDER))
        except OSError:
            return []
        for entry in entries:
            try:
                stat = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if entry.is_file(follow_symlinks=False) and stat.st_uid == os.getuid() and stat.st_ctime >= self.since_s:
                found.append((entry.name, stat.st_ino))
        return found


def used_by(pid: int) -> Set[int]:
    """Inodes of the files in FOLDER that a process has mapped or open, as far as we may see it."""
    found: Set[int] = set()
    prefix = FOLDER + "/"
    try:
        with open("/proc/%d/maps" % pid, "rb") as file:
            for line in file:
                if prefix.encode() in line:
                    found.add(int(line.split()[4]))
        paths = ["/proc/%d/fd/%s" % (pid, name) for name in os.listdir("/proc/%d/fd" % pid)]
    except OSError:
        return found  # gone, or another user's
    for path in paths:
        try:
            if os.readlink(path).startswith(prefix):
                found.add(os.stat(path).st_ino)
        except OSError:
            continue  # closed meanwhile
    return found
