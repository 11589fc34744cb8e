"""A recording of all that becomes of a folder, to be crashed at leisure."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

FOLDER = -1  # what a folder's name stands for, in place of a file's number


class Recorder:
    """Records what becomes of a folder: content of files, names, and what was synced, in order.

    Looks at the folder before and after each operation that could matter, so nothing done in between is missed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.operations: list[tuple] = []
        self.names: dict[str, int] = {}
        self.files: dict[int, tuple] = {}  # inode -> (own number, size, time)
        self.content: dict[int, bytes] = {}
        self.count = 0

    @contextmanager
    def recording(self):
        with ExitStack() as stack:
            for name in ("open", "link", "replace", "rename", "unlink", "mkdir", "rmdir"):
                stack.enter_context(mock.patch.object(os, name, self._watched(getattr(os, name))))
            stack.enter_context(mock.patch.object(os, "fsync", self._fsync(os.fsync)))
            yield
        self.look()

    def _watched(self, real):
        def operation(*arguments, **options):
            self.look()
            try:
                return real(*arguments, **options)
            finally:
                self.look()

        return operation

    def _fsync(self, real):
        def fsync(handle: int) -> None:
            self.look()
            real(handle)
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if path.is_relative_to(self.folder):
                self.operations.append(("sync", str(path.relative_to(self.folder))))

        return fsync

    def look(self) -> None:
        """Note what has changed since the last look."""
        names: dict[str, int] = {}
        inodes: dict[int, tuple] = {}
        for path in sorted(self.folder.rglob("*")):
            name, facts = str(path.relative_to(self.folder)), path.stat()
            if path.is_dir():
                names[name] = FOLDER
                continue
            own, *old = self.files.get(facts.st_ino, (None,))
            if own is None:
                self.count += 1
                own = self.count
            names[name] = own
            if old != [facts.st_size, facts.st_mtime_ns]:
                content = path.read_bytes()
                if self.content.get(own) != content:
                    if len(content) > 1:
                        self.operations.append(("content", own, content[: len(content) // 2]))
                    self.operations.append(("content", own, content))
                    self.content[own] = content
            inodes[facts.st_ino] = (own, facts.st_size, facts.st_mtime_ns)
        if names != self.names:
            self.operations.append(("names", names))
        self.names, self.files = names, inodes
