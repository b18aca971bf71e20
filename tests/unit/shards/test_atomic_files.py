"""Atomic file replacement with several writers and on failure."""

import threading
import time
from pathlib import Path

import pytest

from uniavgen.shards.atomic_files import replace_file


def test_concurrent_writers_leave_one_complete_file(tmp_path: Path) -> None:
    path, failed = tmp_path / "index.npz", list[BaseException]()
    contents = [bytes([65 + writer]) * 100_000 for writer in range(3)]

    def write(content: bytes) -> None:
        try:
            for _ in range(20):
                replace_file(path, content)
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert not path.exists() or path.read_bytes() in contents
        time.sleep(0.005)
    assert failed == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.npz"]


def test_failed_write_leaves_no_partial_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        replace_file(tmp_path / "taken", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]
