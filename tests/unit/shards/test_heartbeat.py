"""Heartbeats: who works here, alive or dead, on this machine and on another."""

import json
import subprocess
import sys
import time
from pathlib import Path

from uniavgen.shards.heartbeat import SILENT_S, Heartbeat, read_beat

HOLD = """
import sys, time
from pathlib import Path
from uniavgen.shards.heartbeat import Heartbeat
with Heartbeat(Path(sys.argv[1])) as beat:
    print("begun", flush=True)
    time.sleep(60)
"""


def test_killed_process_is_dead_at_once_since_its_last_sign(tmp_path: Path) -> None:
    path = tmp_path / "alive.json"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        beat = read_beat(path)
        assert beat is not None
        assert beat.describe() | {"since": 0, "last_sign": 0} == {
            "state": "alive",
            "since": 0,
            "last_sign": 0,
            "host": beat.host,
            "pid": process.pid,
        }
        process.kill()
        process.wait()
    dead = read_beat(path)
    assert dead is not None
    assert not dead.is_alive()
    assert dead.describe()["since"] == dead.time


def test_zombie_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "alive.json"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        deadline = time.monotonic() + 30
        while (beat := read_beat(path)) and beat.is_alive():  # nobody waited for it yet
            assert time.monotonic() < deadline


def test_reused_process_number_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "alive.json"
    with Heartbeat(path):
        document = json.loads(path.read_text())
        assert (own := read_beat(path)) is not None
        assert own.is_alive()
        path.write_text(json.dumps(document | {"process_started": document["process_started"] - 60}))
        assert (other := read_beat(path)) is not None
        assert not other.is_alive()


def test_process_on_another_machine_is_dead_after_its_silence(tmp_path: Path) -> None:
    path = tmp_path / "alive.json"
    with Heartbeat(path):
        document = json.loads(path.read_text()) | {"host": "elsewhere", "pid": 1}
        for silent_s, alive in ((1, True), (SILENT_S + 1, False)):
            path.write_text(json.dumps(document | {"time": time.time() - silent_s}))
            assert (beat := read_beat(path)) is not None
            assert beat.is_alive() is alive


def test_file_is_gone_at_the_end_and_content_is_the_latest(tmp_path: Path) -> None:
    path = tmp_path / "new" / "alive.json"
    with Heartbeat(path) as beat:
        time.sleep(1.1)  # the first write is recent: the next one would wait for the beat
        beat.update(done=3)
        assert (read := read_beat(path)) is not None
        assert read.content == {"done": 3}
    assert read_beat(path) is None
    assert list(path.parent.iterdir()) == []


def test_damaged_file_is_no_heartbeat(tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"host": "here"}', "null"):
        (tmp_path / "alive.json").write_text(content)
        assert read_beat(tmp_path / "alive.json") is None


def test_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Heartbeat(tmp_path / "file" / "alive.json") as beat:
        beat.update(done=1)
