"""Scratch folders of runs that are gone are removed, whichever machine they were on; those of runs that live stay."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uniavgen.ingest.engine.run_dir import ALIVE, SILENT_S, TOUCH_S, WORK, is_running, show_life, work_folder

HOLDER = """
import sys, time
from pathlib import Path
from uniavgen.ingest.engine.run_dir import work_folder
with work_folder(Path(sys.argv[1])) as folder:
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def test_a_run_that_was_killed_leaves_nothing_and_one_that_lives_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        owner = other.stdout.readline().strip()
        assert is_running(tmp_path, owner)
        with work_folder(tmp_path) as mine:
            assert is_running(tmp_path, mine.name)
            assert (tmp_path / WORK / owner).is_dir()
        assert not is_running(tmp_path, mine.name)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert not is_running(tmp_path, owner)
    with work_folder(tmp_path) as mine:
        assert [path.name for path in (tmp_path / WORK).iterdir()] == [mine.name]
    assert not list((tmp_path / WORK).iterdir())


@pytest.mark.parametrize(("silent_s", "runs"), [(SILENT_S - 600, True), (SILENT_S + 600, False)])
def test_a_run_on_another_machine_is_gone_when_it_was_silent_for_long(
    tmp_path: Path, silent_s: float, runs: bool
) -> None:
    sign = tmp_path / WORK / "elsewhere-0123456789ab" / ALIVE
    sign.parent.mkdir(parents=True)
    sign.touch()
    os.utime(sign, times=(time.time() - silent_s,) * 2)
    assert is_running(tmp_path, sign.parent.name) == runs
    with work_folder(tmp_path):
        assert sign.exists() == runs
    show_life(sign.parent)
    if runs:
        assert time.time() - sign.stat().st_mtime < TOUCH_S


def test_a_folder_that_is_just_being_made_is_a_running_run_s(tmp_path: Path) -> None:
    folder = tmp_path / WORK / "here-0123456789ab"
    folder.mkdir(parents=True)
    assert is_running(tmp_path, folder.name)
    os.utime(folder, times=(time.time() - 2 * TOUCH_S,) * 2)
    assert not is_running(tmp_path, folder.name)
