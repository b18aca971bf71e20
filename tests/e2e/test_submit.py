"""`uniavgen submit` on a started cluster: output, failure, and what cannot be submitted."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the dashboard of a one-node cluster."""
    port = free_port()
    # a short path for the sockets, and not the default one, where other Rays would find this cluster
    home = tempfile.mkdtemp(prefix="ray-")
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": home,
    }
    command = [
        BIN / "ray",
        "start",
        "--head",
        "--block",
        "--num-cpus=1",
        f"--port={free_port()}",
        "--disable-usage-stats",
    ]
    command += ["--include-dashboard=true", f"--dashboard-port={port}"]
    # the agent accepts the jobs; its default port may be in use by another Ray of this machine
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    log = (tmp_path_factory.mktemp("cluster") / "ray.log").open("w")

    def start_head() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    heads = [start_head()]
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
        while (first := submit(address, "--no-follow", "--", "plan")).returncode:
            assert "try again" in first.stderr or "no cluster accepts jobs" in first.stderr
            assert time.monotonic() < deadline, first.stderr
            if heads[-1].poll() is not None:  # Ray gives up if its processes start too slowly
                heads.append(start_head())
            time.sleep(1)
        assert json.loads(first.stdout)["status"] == "SUBMITTED"
        yield address
    finally:
        for head in heads:
            head.terminate()
            head.wait(60)
        shutil.rmtree(home, ignore_errors=True)


def submit(address: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [BIN / "uniavgen", "submit", "--json", "--address", address, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=400, env={**os.environ, "RAY_AUTH_MODE": "disabled"}
    )


def test_job_shows_its_output_and_the_exit_of_its_command(cluster: str, tmp_path: Path) -> None:
    good = submit(cluster, "--", "plan", "--preset", "paper", "--gpus", 8)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["status"] == "SUCCEEDED"
    assert "7,055" in good.stderr
    bad = submit(cluster, "--", "curate", "--corpus", tmp_path / "absent")
    assert bad.returncode == 1
    assert str(tmp_path / "absent") in bad.stderr  # the line of the job
    assert re.search(r"error: job raysubmit_\w+ ended as FAILED", bad.stderr)


def test_unreachable_cluster_and_unknown_command_are_errors_in_one_line() -> None:
    dead_address = f"http://127.0.0.1:{free_port()}"
    done = submit(dead_address, "--", "plan")
    assert done.returncode == 1
    assert dead_address in json.loads(done.stdout)["error"]
    assert f"({dead_address}); start one (ray start --head)" in done.stderr
    unknown = submit(dead_address, "--", "ingestt", "x")
    assert unknown.returncode == 2
    assert "did you mean ingest?" in unknown.stderr
