"""A Ray cluster loses a node during training.

Nothing hangs, checkpoints stay intact, the workers restart when there are resources, and the result equals
that of an undisturbed run bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from made_runs import Run, small_config, train_together
from made_samples import make_sample, write_shards

from uniavgen.orchestration.commands.verify_resume import compare, kill_all
from uniavgen.shards import weights
from uniavgen.train.checkpoint.run_folder import RunFolder, differing
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.tasks import Task

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STAGE = StageConfig(name="joint", steps=14, batch=4, tasks={Task.JOINT: 1, Task.DUBBING: 1})
EVERY = 3
TIMEOUT_S = 600.0
"""Generous, because a busy machine may need minutes for 20 s of work."""
DRIVER = """
import os, sys, time
import ray
from functools import partial
from pathlib import Path
from uniavgen.shards.errors import UserError
from uniavgen.train.launch import run_stage
from uniavgen.train.config import TrainConfig

def begin_holding(home):
    def hold(step, metrics):
        if (home / f"hold-{step}").exists():
            (home / f"held-{step}").write_text(f"{ray.get_runtime_context().get_node_id()} {os.getpid()}.")
        while (home / f"hold-{step}").exists():
            time.sleep(0.05)
    return hold

if __name__ == "__main__":
    config_path, shards, home = sys.argv[1:]
    config = TrainConfig.model_validate_json(Path(config_path).read_text())
    try:
        run_stage(config, "joint", shards, Path(home) / "run", partial(begin_holding, Path(home)))
    except UserError as error:
        print(f"{error.kind}: {error}", flush=True)
        sys.exit(1)
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs and two nodes with one CPU each, as separate processes."""
    # an own folder: Ray records a started cluster there, and others would join it; short, for socket paths
    home = tempfile.mkdtemp(prefix="ray-")
    settings = {
        "RAY_TMPDIR": home,
        "RAY_AUTH_MODE": "disabled",
        "RAY_memory_usage_threshold": "0.99",
        # default: a lost node is noticed after about 15 s
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "3",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)  # Ray's nodes replace it
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        yield nodes
    finally:
        nodes.shutdown()
        signal.signal(signal.SIGTERM, before)
        assert not list(Path(home).rglob("ray_current_cluster"))
        shutil.rmtree(home, ignore_errors=True)


class Training:
    """One run folder and the drivers that train into it on a cluster. A step can be paused."""

    def __init__(self, home: Path, shards_dir: Path, address: str) -> None:
        self.home, self.shards_dir, self.address = home, shards_dir, address
        self.folder = RunFolder(home / "run", "joint")
        (home / "driver.py").write_text(DRIVER)

    @contextmanager
    def started(self, config: TrainConfig) -> Iterator[subprocess.Popen[bytes]]:
        (self.home / "config.json").write_text(config.model_dump_json())
        words = [self.home / "driver.py", self.home / "config.json", self.shards_dir, self.home]
        with (self.home / "output.txt").open("wb") as log:
            driver = subprocess.Popen(
                [sys.executable, *map(str, words)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"RAY_ADDRESS": self.address},
            )
        try:
            yield driver
            driver.wait(TIMEOUT_S)
        finally:
            kill_all(driver.pid)

    def hold(self, step: int) -> None:
        (self.home / f"hold-{step}").touch()

    def lose_a_node(self, step: int, cluster: Cluster, driver: subprocess.Popen[bytes]) -> None:
        """When the workers pause after a step, remove the first one's node; resume without its worker."""
        held, deadline = self.home / f"held-{step}", time.monotonic() + TIMEOUT_S
        while not (held.is_file() and held.read_text().endswith(".")):
            assert driver.poll() is None, self.output
            assert time.monotonic() < deadline
            time.sleep(0.05)
        node_id, pid = held.read_text().rstrip(".").split()
        (lost,) = [node for node in cluster.worker_nodes if node.node_id == node_id]
        cluster.remove_node(lost, allow_graceful=False)
        # a worker outlives its node for a moment, in which it could train and save
        psutil.wait_procs([psutil.Process(int(pid))] if psutil.pid_exists(int(pid)) else [], TIMEOUT_S)
        (self.home / f"hold-{step}").unlink()

    @property
    def output(self) -> str:
        return (self.home / "output.txt").read_text()

    def restarts(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.folder.events.read_text().splitlines()]
        return [line for line in lines if line["event"] == "restart"]


def test_run_survives_lost_nodes_bit_for_bit(tmp_path: Path, cluster: Cluster) -> None:
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    shards_dir = write_shards(
        tmp_path / "shards", [make_sample(f"clip{i}", 24 + i, seed=i) for i in range(8)]
    )
    config = small_config([STAGE], 2, every=EVERY).model_copy(update={"trace": True, "max_restarts": 1})
    training = Training(tmp_path, shards_dir, cluster.address)

    # no node replaces the lost one: the run ends with one line
    training.hold(4)
    with training.started(config.model_copy(update={"room_wait_s": 2})) as driver:
        training.lose_a_node(4, cluster, driver)
    assert driver.returncode == 1
    assert (
        training.output.strip()
        .splitlines()[-1]
        .startswith("too-small: the cluster had no resources for 2 workers within 2 s")
    )
    assert [restart["step"] for restart in training.restarts()] == [3]
    assert training.folder.steps() == [3]
    assert differing(training.folder.checkpoint(3), training.folder.manifest(3)) == []

    # with new nodes the same command continues; when another node is lost, a spare one replaces it
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    training.hold(11)
    with training.started(config) as driver:
        training.lose_a_node(11, cluster, driver)
    assert driver.returncode == 0, training.output
    last = training.restarts()[-1]
    assert last["step"] == 9
    assert "a training worker was lost: " in last["text"]
    assert "node" in last["text"]
    assert "restart 1 of 1 from step 9, once there are resources for all workers" in last["text"]

    straight = tmp_path / "straight"
    straight.mkdir()
    train_together([Run(config, "joint", straight)], shards_dir, 2)
    differences = {one.what: one.difference for one in compare(straight / "joint", training.folder.path)}
    assert differences == {"losses": None, "sample ids": None, "weights": None}
