"""Small files are replaced whole, whoever else replaces them at the same time."""

import threading
import time
from pathlib import Path

import pytest

from uniavgen.shards.atomic_files import replace_file


def test_several_writers_of_one_file_leave_one_whole_content_and_nothing_else(tmp_path: Path) -> None:
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
    assert [found.name for found in tmp_path.iterdir()] == ["index.npz"]


def test_a_write_that_fails_leaves_the_old_file_and_no_half(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        replace_file(tmp_path / "taken", b"new")
    assert [found.name for found in tmp_path.iterdir()] == ["taken"]
