"""Ray workers import installed code only, never files of the folder in which a user starts a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_folder import imported_names, make_hostile_folder

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
    print(json.dumps(ray.get(ray.remote(modules).remote())))
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
