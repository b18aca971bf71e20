"""One writer per run folder, also after the first one was killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint import run_lock
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.checkpoint.run_lock import only_driver, only_trainer

HOLD = """
import sys, time
from pathlib import Path
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.checkpoint.run_lock import only_driver, only_trainer
with only_driver(sys.argv[1]), only_trainer(RunFolder(sys.argv[1], "joint"), 0):
    Path(sys.argv[1], "held").touch()
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds both locks of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)])
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "held").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def test_second_writer_is_refused_until_first_is_killed(
    holder: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "RANK_WAIT_S", 0.1)
    folder = RunFolder(tmp_path, "joint")
    with pytest.raises(UserError) as caught, only_driver(tmp_path):
        pass
    assert caught.value.kind == "busy"
    with pytest.raises(UserError) as caught, only_trainer(folder, 0):
        pass
    assert caught.value.kind == "busy"
    with only_trainer(folder, 1):
        pass  # other ranks hold nothing
    holder.kill()
    holder.wait()
    with only_driver(tmp_path), only_trainer(folder, 0):
        pass


def test_rank_waits_for_rank_of_killed_run(
    holder: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "RANK_WAIT_S", 30)
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
    with only_trainer(RunFolder(tmp_path, "joint"), 0):
        assert holder.wait(5) == -9


def test_one_process_holds_the_driver_lock_twice(tmp_path: Path) -> None:
    with only_driver(tmp_path), only_driver(tmp_path):
        pass
