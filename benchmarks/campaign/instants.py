"""Every state of a folder that a kill or a full disk could leave, found in one run of a command.

A kill leaves what the system has of each file. So the folder is copied whenever Python is about to
change a name or to open a file there, and a file that came or grew since is also cut in half: what
libraries write without Python has no other instants.
"""

import contextlib
import os
import pathlib
import resource
import shutil
import sys
import threading
from collections.abc import Iterator

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")


class Instants:
    """Copies of `folder` under `copies`, as they are found while `watching`."""

    def __init__(self, folder: pathlib.Path, copies: pathlib.Path):
        self.folder, self.found = folder, []
        self._copies, self._lock, self._inside = copies, threading.RLock(), False
        self._before, self._on = {}, False
        copies.mkdir()
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Finds the states while the block runs, and the one at its end."""
        self._before, self._on = _files(self.folder), True
        try:
            yield
            self._copy()
        finally:
            self._on = False

    def _hear(self, event, arguments):
        # A hook cannot be removed.
        if self._on and (event in _CHANGES or (event == "open" and self._is_own(arguments[0]))):
            self._copy()

    def _is_own(self, path):
        return not isinstance(path, int) and os.fsdecode(path).startswith(str(self.folder))

    def _copy(self):
        with self._lock:
            if self._inside:  # copying opens files too
                return
            self._inside = True
            try:
                self._keep(_files(self.folder))
            finally:
                self._inside = False

    def _keep(self, now):
        if now == self._before:
            return
        # A file that was moved is the same one.
        sizes = {number: size for size, _, number in self._before.values()}
        written = [name for name, (size, _, number) in now.items() if size > sizes.get(number, 0)]
        written.sort(key=lambda name: now[name][1])
        for place, name in enumerate(written):
            half = self._new()
            with (half / name).open("r+b") as file:
                file.truncate(now[name][0] // 2)
            for later in written[place + 1 :]:
                (half / later).unlink()
        self._new()
        self._before = now

    def _new(self):
        copy = self._copies / str(len(self.found))
        shutil.copytree(self.folder, copy, symlinks=True) if self.folder.exists() else copy.mkdir()
        self.found.append(copy)
        return copy


def _files(folder):
    """Name -> size, time of change and number of each file."""
    found = {}
    for path in pathlib.Path(folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                status = path.stat()
                own = status.st_size, status.st_mtime_ns, status.st_ino
                found[str(path.relative_to(folder))] = own
    return found


def spread(values: list, count: int) -> list:
    """At most `count` of some values, evenly; all where `count` is 0."""
    if not count or len(values) <= count:
        return values
    return [values[place * (len(values) - 1) // max(count - 1, 1)] for place in range(count)]


@contextlib.contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes; the error is like that of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
