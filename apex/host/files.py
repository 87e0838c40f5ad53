"""Crash-safe files: synced writes, atomic replacement, and file locks."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import stat
import time
from pathlib import Path

from apex.errors import UsageError


def fsync_path(path: Path) -> None:
    """Sync a file, or the entries of a directory, to the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts`, concatenated, to `path` and sync them to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, *parts: bytes | memoryview) -> None:
    """Atomically replace the file at `path`: readers see the old or the new content, never a mix.

    Args:
        path: the file to create or replace.
        parts: the new content, concatenated.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, *parts)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def overwrite_file(path: Path, data: bytes) -> None:
    """Overwrite a file in place, not atomically: a kill can leave it half written.

    Raises:
        OSError: the file does not exist or cannot be written.
    """
    with path.open("r+b", buffering=0) as file:
        file.write(data)
        file.truncate()


AT_FDCWD, RENAME_EXCHANGE = -100, 2


def replace_directory(new: Path, path: Path) -> None:
    """Move the directory `new` to `path`, atomically where the file system can (renameat2).

    A previous directory at `path` is then at `new`, or removed. Raises `OSError`.
    """
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.rename(aside)
        new.rename(path)
        remove(aside)


def _exchange(first: Path, second: Path) -> bool:
    names = os.fsencode(first), os.fsencode(second)
    libc = ctypes.CDLL(None)
    result: int = libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
    return result == 0


def check_output(path: Path, endings: tuple[str, ...]) -> None:
    """Raise `UsageError` unless `path` is usable for an output file with one of these endings."""
    if path.suffix not in endings:
        raise UsageError(f"{path}: expected a file name that ends in {' or '.join(endings)}")
    if path.is_dir():
        raise UsageError(f"{path} is a directory")
    problem = write_problem(path.parent)
    if problem is not None:
        raise UsageError(f"{path} cannot be written: {problem}")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a directory")


def describe_os_error(error: OSError) -> str | None:
    """Describe an error about a file or about file descriptors; None if it is another one."""
    if error.filename is None or error.errno in TOO_MANY_FILES:
        return describe_too_many_files(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


def describe_too_many_files(error: BaseException) -> str | None:
    """Describe an error of the system or of zmq for lack of file descriptors; None if another."""
    number = getattr(error, "errno", None)
    if number not in TOO_MANY_FILES:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"{os.strerror(number)}: this process may have {soft} (hard limit {hard}); raise the limit "
        "with `ulimit -n`, or LimitNOFILE of a service, and start again"
    )


def write_problem(folder: Path) -> str | None:
    """Why no file can be made in a directory, which may not exist yet; None if that is possible."""
    folder = folder.absolute()
    try:
        found = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
        if not found.is_dir():
            return f"{found} is not a directory"
        if os.access(found, os.W_OK | os.X_OK):
            return None
        is_read_only = os.statvfs(found).f_flag & os.ST_RDONLY
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    return f"{found} is {'on a read-only disk' if is_read_only else 'not writable for you'}"


def writer_problem(path: Path) -> str | None:
    """Check that only this user and root can have written `path`; returns the problem or None."""
    checks = ((path.parent, stat.S_ISDIR, "directory"), (path, stat.S_ISREG, "regular file"))
    for checked, is_expected, kind in checks:
        status = checked.lstat()
        if not is_expected(status.st_mode):
            return f"{checked} is not a {kind} (or it is a link)"
        if status.st_uid not in (os.getuid(), 0):
            return f"{checked} belongs to another user (id {status.st_uid})"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{checked} is writable by other users (chmod go-w)"
    return None


def remove(path: Path) -> None:
    """Remove a file, or a directory with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


ATTEMPTS, RETRY_S = 100, 0.002


class FileLock:
    """An exclusive lock on a file. The kernel releases it when the holding process ends.

    The file can hold a text for other processes, such as the holder's process id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock; returns False if another process holds it.

        `is_locked` holds the lock for microseconds to check it, so a few attempts are made.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(RETRY_S)
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
        """Release the lock; the file stays."""
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
