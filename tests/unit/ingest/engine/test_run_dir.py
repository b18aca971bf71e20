"""Run directories: those of dead runs are removed, on any machine; those of live runs stay."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uniavgen.ingest.engine.run_dir import (
    ALIVE_FILE,
    RUNS_FOLDER,
    SILENT_S,
    TOUCH_S,
    is_running,
    make_run_dir,
    touch_alive,
)

HOLDER = """
import sys, time
from pathlib import Path
from uniavgen.ingest.engine.run_dir import make_run_dir
with make_run_dir(Path(sys.argv[1])) as folder:
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def test_directory_of_killed_run_is_removed_and_of_live_run_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        run = other.stdout.readline().strip()
        assert is_running(tmp_path, run)
        with make_run_dir(tmp_path) as mine:
            assert is_running(tmp_path, mine.name)
            assert (tmp_path / RUNS_FOLDER / run).is_dir()
        assert not is_running(tmp_path, mine.name)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert not is_running(tmp_path, run)
    with make_run_dir(tmp_path) as mine:
        assert [path.name for path in (tmp_path / RUNS_FOLDER).iterdir()] == [mine.name]
    assert not list((tmp_path / RUNS_FOLDER).iterdir())


@pytest.mark.parametrize(("silent_s", "is_alive"), [(SILENT_S - 600, True), (SILENT_S + 600, False)])
def test_run_on_another_machine_is_dead_after_long_silence(
    tmp_path: Path, silent_s: float, is_alive: bool
) -> None:
    sign = tmp_path / RUNS_FOLDER / "elsewhere-0123456789ab" / ALIVE_FILE
    sign.parent.mkdir(parents=True)
    sign.touch()
    os.utime(sign, times=(time.time() - silent_s,) * 2)
    assert is_running(tmp_path, sign.parent.name) == is_alive
    with make_run_dir(tmp_path):
        assert sign.exists() == is_alive
    touch_alive(sign.parent)
    if is_alive:
        assert time.time() - sign.stat().st_mtime < TOUCH_S


def test_new_directory_belongs_to_a_live_run(tmp_path: Path) -> None:
    folder = tmp_path / RUNS_FOLDER / "here-0123456789ab"
    folder.mkdir(parents=True)
    assert is_running(tmp_path, folder.name)
    os.utime(folder, times=(time.time() - 2 * TOUCH_S,) * 2)
    assert not is_running(tmp_path, folder.name)
