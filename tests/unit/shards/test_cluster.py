"""Ray workers import installed code only, never files of the folder in which a user starts a command."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_folder import imported_names, make_hostile_folder

from uniavgen.shards import cluster
from uniavgen.shards.errors import UserError

DRIVER = """
import json, sys
from uniavgen.shards.cluster import ray_running

def modules():
    import os, random, sys, types
    import uniavgen.shards.sample
    return {"path": sys.path, "sample": uniavgen.shards.sample.__file__, "random": random.__file__,
            "folder": os.getcwd()}

with ray_running():
    import ray
    services = list(ray._private.worker._global_node.all_processes)
    print(json.dumps(ray.get(ray.remote(modules).remote()) | {"services": services}))
"""


@pytest.mark.slow
def test_ray_workers_do_not_import_from_the_current_folder(tmp_path: Path) -> None:
    hostile_folder = make_hostile_folder(tmp_path)
    command = [sys.executable, "-P", "-c", DRIVER]
    done = subprocess.run(
        command, cwd=hostile_folder, capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]
    worker = json.loads(done.stdout)
    assert str(hostile_folder) not in worker["path"]
    assert str(hostile_folder) not in worker["sample"] + worker["random"]
    assert imported_names(hostile_folder) == []
    assert worker["folder"] == str(hostile_folder), "relative paths are those of the driver"
    assert {"gcs_server", "raylet"} <= set(worker["services"])
    assert not {"monitor", "log_monitor", "dashboard"} & set(worker["services"]), "they serve clusters only"


def test_dead_address_is_an_error_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match="no Ray cluster answers: connection refused"):
            cluster.check_cluster(f"127.0.0.1:{port}")
        listener.listen()  # accepts and never answers
        with pytest.raises(UserError, match="no Ray cluster answers: timed out"):
            cluster.check_cluster(f"ray://127.0.0.1:{port}")
    for wrong in ("here", "host:port", ":6379"):
        with pytest.raises(UserError, match="not HOST:PORT"):
            cluster.check_cluster(wrong)
    cluster.check_cluster("auto")


def test_long_temporary_folder_is_replaced_by_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 60)
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert cluster.short_temp_folder() == f"/tmp/ray-{os.getuid()}"
    monkeypatch.setattr(cluster, "SHORT_TEMP", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="set RAY_TMPDIR to a folder of at most 31 characters"):
        cluster.short_temp_folder()
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert cluster.short_temp_folder() is None


def test_temporary_folder_without_room_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.check_temp_space(str(tmp_path / "not" / "made yet"))
    monkeypatch.setattr(cluster, "MIN_TEMP_BYTES", 2**70)
    with pytest.raises(UserError, match="has .* MiB free, .* set TMPDIR to another folder"):
        cluster.check_temp_space(str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written"):
        cluster.check_temp_space(str(tmp_path))
