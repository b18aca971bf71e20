"""Training is stopped, a worker is killed while it saves, the driver is killed.

Checkpoints stay intact, only the steps since the last one are lost, and the result equals that of an
undisturbed run bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from made_runs import Run, small_config, train_together
from made_samples import make_sample, write_shards

from uniavgen.orchestration.commands.verify_resume import compare, kill_all
from uniavgen.shards import weights
from uniavgen.train.checkpoint.run_folder import RunFolder, differing
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.tasks import Task

pytestmark = pytest.mark.slow

STAGE = StageConfig(name="joint", steps=24, batch=4, tasks={Task.JOINT: 1, Task.DUBBING: 1})
EVERY = 3
DRIVER = """
import sys
from pathlib import Path
from uniavgen.shards.errors import UserError
from uniavgen.train.launch import run_stage
from uniavgen.train.config import TrainConfig
if __name__ == "__main__":
    config_path, shards, run = sys.argv[1:]
    try:
        run_stage(TrainConfig.model_validate_json(Path(config_path).read_text()), "joint", shards, run)
    except UserError as error:
        print(f"{error.kind}: {error}", flush=True)
        sys.exit(getattr(error, "code", 1))
"""


@pytest.fixture(scope="module")
def shards_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    samples = [make_sample(f"clip{i}", 24 + i, seed=i) for i in range(8)]
    return write_shards(tmp_path_factory.mktemp("corpus") / "shards", samples)


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return small_config([STAGE], 2, every=EVERY).model_copy(update={"trace": True})


class Driver:
    """Starts the same training repeatedly, to be ended in different ways."""

    def __init__(self, home: Path, config: TrainConfig, shards_dir: Path) -> None:
        self.home, self.shards_dir, self.folder = home, shards_dir, RunFolder(home / "run", "joint")
        (home / "driver.py").write_text(DRIVER)
        (home / "config.json").write_text(config.model_dump_json())

    def until(self, happened: Callable[[], bool], then: Callable[[psutil.Process], None]) -> tuple[int, str]:
        """Start, call `then` on the process once `happened`, wait; returns exit code and last line."""
        words = [self.home / "driver.py", self.home / "config.json", self.shards_dir, self.home / "run"]
        said = self.home / "said.txt"
        with said.open("wb") as log:
            driver = subprocess.Popen(
                [sys.executable, *map(str, words)], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            while driver.poll() is None and not happened():
                time.sleep(0.002)
            assert driver.poll() is None, said.read_text()
            then(psutil.Process(driver.pid))
            driver.wait(400)
        finally:
            kill_all(driver.pid)
        return driver.returncode, (said.read_text().strip().splitlines() or [""])[-1]

    def saving_after(self, step: int) -> Callable[[], bool]:
        """Whether a checkpoint after `step` is being written now, leftovers of an earlier kill aside."""
        began = time.time()

        def saving() -> bool:
            for part in self.folder.checkpoints.glob(".*.part"):
                with suppress(FileNotFoundError):  # it was completed in this moment
                    if int(part.name.split("-")[1].split(".")[0]) > step and part.stat().st_mtime > began:
                        return True
            return False

        return saving

    def steps_done(self) -> int:
        """Steps that the first worker has finished, from its trace."""
        trace = self.folder.path / "trace-0.jsonl"
        lines = trace.read_text().splitlines() if trace.is_file() else []
        return max((json.loads(line)["step"] + 1 for line in lines if line.endswith("}")), default=0)

    def check(self, lost: int) -> int:
        """Check that all checkpoints are intact and at most `lost` steps are lost; returns the next step."""
        for step in self.folder.steps():
            assert differing(self.folder.checkpoint(step), self.folder.manifest(step)) == []
        newest = self.folder.steps()[-1]
        assert self.steps_done() - newest <= lost
        return newest


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    return [
        child
        for child in driver.children(recursive=True)
        if any("RayTrainWorker" in word for word in child.cmdline())
    ]


def kill_driver_alone(driver: psutil.Process) -> None:
    """Kill only the driver. Its workers must end by themselves, not write into the next start's folder."""
    workers, family = workers_of(driver), driver.children(recursive=True)
    assert workers
    driver.kill()
    _, alive = psutil.wait_procs(workers, timeout=90)
    assert not alive
    for helper in family:
        if helper.is_running():
            helper.kill()


def test_run_survives_stops_and_kills_bit_for_bit(
    tmp_path: Path, config: TrainConfig, shards_dir: Path
) -> None:
    straight = tmp_path / "straight"
    straight.mkdir()
    train_together([Run(config, "joint", straight)], shards_dir, 2)
    driver = Driver(tmp_path, config, shards_dir)

    code, said = driver.until(lambda: driver.steps_done() >= 4, lambda process: process.terminate())
    assert code == 128 + signal.SIGTERM
    stopped = driver.check(lost=0)
    assert stopped >= 4
    assert said.startswith(f"stopped: stopped after step {stopped} of stage joint, which is saved")
    assert said.endswith("run the same command again to resume")

    victim = random.Random(os.getpid()).randrange(2)
    code, said = driver.until(
        driver.saving_after(stopped), lambda process: workers_of(process)[victim].kill()
    )
    assert code == 1
    assert said.startswith("worker-lost: a training worker was lost"), (victim, said)
    after_kill = driver.check(lost=EVERY)
    assert after_kill >= stopped

    code, said = driver.until(driver.saving_after(after_kill), kill_driver_alone)
    assert code == -signal.SIGKILL
    driver.check(lost=EVERY)

    code, said = driver.until(lambda: driver.folder.done, lambda process: None)
    assert code == 0, said
    differences = {one.what: one.difference for one in compare(straight / "joint", driver.folder.path)}
    assert differences == {"losses": None, "sample ids": None, "weights": None}


def test_comparison_finds_a_planted_difference(tmp_path: Path) -> None:
    from uniavgen.train.checkpoint.run_folder import write_tensors

    def leave(name: str, losses: list[str], keys: list[str], weight: float) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        lines = [
            {"step": step, "losses": [losses[step]], "keys": {"0": keys[step]}} for step in range(len(losses))
        ]
        (folder / "trace-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_tensors(folder / "model.safetensors", {"w": torch.tensor([1.0, weight])})
        return folder

    one = leave("one", ["0x1p0", "0x1p1"], ["a", "b"], 2.0)
    same = leave("same", ["0x1p0", "0x1p1"], ["a", "b"], 2.0)
    assert all(found.equal for found in compare(one, same))
    other = leave("other", ["0x1p0", "0x1.0000000000001p1"], ["c", "b"], 2.0000002)
    assert [found.difference for found in compare(one, other)] == ["step 2", "step 1", "w"]
    short = leave("short", ["0x1p0"], ["a"], 2.0)
    assert [found.difference for found in compare(one, short)] == ["step 2", "step 2", None]
    with (same / "trace-0.jsonl").open("a") as lines:  # a step that was run again, otherwise
        lines.write(json.dumps({"step": 1, "losses": ["0x1p2"], "keys": {"0": "b"}}) + "\n")
    assert [found.difference for found in compare(one, same)] == ["step 2", None, None]
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert not any(found.equal for found in compare(nothing, nothing)[:2])
