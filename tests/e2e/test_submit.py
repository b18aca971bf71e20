"""A command goes to a started cluster as a Ray job: its output comes back, and so does its failure."""

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
    """The dashboard's address of a one-node cluster that has this program."""
    port = free_port()
    # a folder of its own (and a short one, for the sockets): Ray notes a started cluster there, which others would join
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
    # the agent takes the jobs; at its usual port it would find that of any other Ray on this machine, and not start
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    log = (tmp_path_factory.mktemp("cluster") / "ray.log").open("w")

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    heads = [begin()]
    try:
        address, patience = f"http://127.0.0.1:{port}", time.monotonic() + 240
        while (first := submit(address, "--no-follow", "--", "plan")).returncode:
            assert "try again" in first.stderr or "no cluster takes jobs" in first.stderr
            assert time.monotonic() < patience, first.stderr
            if (
                heads[-1].poll() is not None
            ):  # on a busy machine Ray gives up where its own parts take too long to start
                heads.append(begin())
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


def test_a_job_shows_its_output_and_ends_as_its_command_does(cluster: str, tmp_path: Path) -> None:
    good = submit(cluster, "--", "plan", "--preset", "paper", "--gpus", 8)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["status"] == "SUCCEEDED"
    assert "7,055" in good.stderr
    bad = submit(cluster, "--", "curate", "--corpus", tmp_path / "absent")
    assert bad.returncode == 1
    assert str(tmp_path / "absent") in bad.stderr  # the job's own line
    assert re.search(r"error: job raysubmit_\w+ ended as FAILED", bad.stderr)


def test_what_cannot_be_submitted_is_told_in_one_line() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    alone = submit(nowhere, "--", "plan")
    assert (alone.returncode, alone.stdout) == (1, "")
    assert f"({nowhere}); start one (ray start --head)" in alone.stderr
    unknown = submit(nowhere, "--", "ingestt", "x")
    assert unknown.returncode == 2
    assert "did you mean ingest?" in unknown.stderr
