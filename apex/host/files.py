"""Files that survive a crash: atomic replacement and locks that die with their holder."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import stat
import time
from pathlib import Path

from apex.errors import UsageError


def fsync_path(path: Path) -> None:
    """Bring a file, or the names inside a directory, to the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts`, joined, to `path` and wait until they are on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, *parts: bytes | memoryview) -> None:
    """Put `parts`, joined, at `path` so that a reader sees the old content or the new one whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, *parts)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def overwrite_file(path: Path, data: bytes) -> None:
    """Write over what is there, which a kill can leave half done. Raises `OSError`."""
    with path.open("r+b", buffering=0) as file:
        file.write(data)
        file.truncate()


AT_FDCWD, RENAME_EXCHANGE = -100, 2


def replace_directory(new: Path, path: Path) -> None:
    """Put a directory at `path`; what was there lies at `new` then, or is gone.

    The two change places at once, but on file systems that cannot (renameat2). Raises `OSError`.
    """
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.rename(aside)
        new.rename(path)
        remove(aside)


def _exchange(one: Path, other: Path) -> bool:
    names = os.fsencode(one), os.fsencode(other)
    libc = ctypes.CDLL(None)
    done: int = libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
    return done == 0


def check_output(path: Path, endings: tuple[str, ...]) -> None:
    """Raise `UsageError` unless a file of one of these kinds can lie at `path`."""
    if path.suffix not in endings:
        raise UsageError(f"{path}: expected a file that ends in {' or '.join(endings)}")
    if path.is_dir():
        raise UsageError(f"{path} is a directory")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory")


def writer_problem(path: Path) -> str | None:
    """Why others than this user and root may have written `path`; None if they cannot have."""
    for one, expected in ((path.parent, stat.S_ISDIR), (path, stat.S_ISREG)):
        status = one.lstat()
        if not expected(status.st_mode):
            return f"{one} is a link or nothing that belongs there"
        if status.st_uid not in (os.getuid(), 0):
            return f"{one} belongs to user {status.st_uid}"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{one} can be written by others (chmod go-w)"
    return None


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


TRIES, TRY_AGAIN_S = 100, 0.002


class FileLock:
    """An exclusive lock on a file that the kernel drops when its holder ends, however it ends.

    The file may carry a text that others read, such as the holder's process id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False when another process has it.

        One that only looks (`is_locked`) holds it for microseconds: hence a few tries.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(TRY_AGAIN_S)
            else:
                self._descriptor = descriptor
                return True
        os.close(descriptor)
        return False

    def write(self, text: str) -> None:
        """Replace the text of the locked file. Raises `OSError`."""
        assert self._descriptor is not None
        os.pwrite(self._descriptor, text.encode(), 0)
        os.ftruncate(self._descriptor, len(text.encode()))

    def release(self) -> None:
        """Give the lock back; the file stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """Whether a living process holds the `FileLock` at `path`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
