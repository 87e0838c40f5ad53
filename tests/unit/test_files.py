"""Files that survive a crash, and locks that die with their holder."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from apex.host import files
from apex.host.files import FileLock, is_locked, replace_directory, replace_file


def test_replaced_file_holds_the_new_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"one")
    replace_file(path, b"t", b"", memoryview(b"wo"))
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_directory_replaces_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    old, new = tmp_path / "place", tmp_path / "new"
    for folder, text in ((old, "old"), (new, "new")):
        folder.mkdir()
        (folder / "file").write_text(text)
    if not can_exchange:  # as on some network file systems
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    replace_directory(new, old)
    assert (old / "file").read_text() == "new"
    assert [(path / "file").read_text() for path in tmp_path.iterdir() if path != old] == (
        ["old"] if can_exchange else []
    )


def test_lock_is_acquired_while_others_check_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            is_locked(path)

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(500):
            lock = FileLock(path)
            assert lock.acquire()
            lock.release()
    finally:
        done.set()
        for watcher in watchers:
            watcher.join()
