"""Watchdog: a step over its limits ends its process but not the run, and is not tried forever."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uniavgen.ingest.engine.watchdog import Watchdog, resident_bytes
from uniavgen.shards.errors import UserError

WORKER = """
import subprocess, sys, time
from pathlib import Path
from uniavgen.ingest.engine.watchdog import Watchdog
from uniavgen.shards.errors import UserError

def hang():
    time.sleep(60)

def hang_with_a_child():
    subprocess.run(["sleep", "61.25"])

def eat():
    held = []
    while True:
        held.append(bytearray(b"x" * 2**24))
        time.sleep(0.01)

def die():
    import os
    os._exit(9)

try:
    with Watchdog(Path(sys.argv[1])).watching("/v/a.mp4", "faces", float(sys.argv[3]), float(sys.argv[4])):
        globals()[sys.argv[2]]()
except UserError as error:
    print(error.kind, error)
"""


def attempt(folder: Path, what: str, seconds: float = 60, memory_gb: float = 8) -> tuple[int, str]:
    command = [sys.executable, "-c", WORKER, str(folder), what, str(seconds), str(memory_gb)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    return done.returncode, done.stdout.strip()


def test_hanging_step_is_ended_and_then_fails_with_timeout(tmp_path: Path) -> None:
    began = time.monotonic()
    assert attempt(tmp_path, "hang", seconds=0.5)[0] == 1
    assert time.monotonic() - began < 20
    code, said = attempt(tmp_path, "hang")
    assert (code, said) == (
        0,
        "timeout faces took longer than 0 s (/v/a.mp4); raise limits.step_seconds or limits.step_factor",
    )
    assert not list(tmp_path.iterdir()), "the marker is removed with the refusal"


def test_children_of_hanging_step_are_killed(tmp_path: Path) -> None:
    assert attempt(tmp_path, "hang_with_a_child", seconds=0.5)[0] == 1
    time.sleep(0.2)
    alive = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _reads(path) == b"sleep\x0061.25\x00"]
    assert not alive


def _reads(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_step_over_memory_limit_is_ended(tmp_path: Path) -> None:
    assert attempt(tmp_path, "eat", memory_gb=0.4)[0] == 1
    code, said = attempt(tmp_path, "eat", memory_gb=0.4)
    assert code == 0
    assert said.startswith("out-of-memory faces had 0.")
    assert "the limit is 0.4 GiB" in said


def test_step_fails_after_two_worker_deaths(tmp_path: Path) -> None:
    assert [attempt(tmp_path, "die")[0] for _ in range(2)] == [9, 9]
    assert attempt(tmp_path, "die") == (0, "worker-died the worker died 2 times in this step (/v/a.mp4)")
    assert attempt(tmp_path, "die")[0] == 9, "a later try (--retry) starts from nothing"


def test_ended_step_leaves_no_marker(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path)
    with watchdog.watching("/v/a.mp4", "faces", 60, 8):
        assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ZeroDivisionError), watchdog.watching("/v/a.mp4", "faces", 60, 8):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_marker_of_a_step_survives_an_earlier_step(tmp_path: Path) -> None:
    assert attempt(tmp_path, "hang", seconds=0.5)[0] == 1
    with Watchdog(tmp_path).watching("/v/a.mp4", "fetch", 60, 8):
        pass
    assert attempt(tmp_path, "hang")[1].startswith("timeout")


def test_damaged_marker_is_ignored(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path)
    with watchdog.watching("/v/a.mp4", "faces", 60, 8):
        (marker,) = tmp_path.iterdir()
        for content in ("{", '{"x": 1}'):
            marker.write_text(content)
            with Watchdog(tmp_path).watching("/v/a.mp4", "faces", 60, 8):
                assert json.loads(marker.read_text())["deaths"] == 0


def test_resident_memory_is_in_bytes() -> None:
    before = resident_bytes()
    held = bytearray(b"x" * 2**26)
    assert 2**26 * 0.9 < resident_bytes() - before < 2**26 * 1.5
    assert held


def test_error_has_a_hint(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path)
    with watchdog.watching("/v/a.mp4", "faces", 60, 8):
        (marker,) = tmp_path.iterdir()
        marker.write_text(
            json.dumps({"step": "faces", "deaths": 0, "verdict": "timeout", "message": "faces took too long"})
        )
        with (
            pytest.raises(UserError, match="raise limits.step_seconds"),
            Watchdog(tmp_path).watching("/v/a.mp4", "faces", 1, 8),
        ):
            pass
