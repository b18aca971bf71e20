"""`uniavgen verify-resume`: proves on this machine, with this configuration, that an interrupted run loses nothing.

In: a corpus, a configuration, a folder. It trains a stage 2 N steps straight, and again with everything killed (-9) once the
checkpoint after N steps stands; both from random weights, through the same command that a user types. Out: losses, sample ids
and weights of both, compared bit for bit.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration import console
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config

COMMAND = "from uniavgen.orchestration.cli import main; main()"


@dataclass(frozen=True)
class Comparison:
    """One thing compared: how many there are, and the first that differs (None: none does)."""

    what: str
    compared: int
    difference: str | None

    @property
    def equal(self) -> bool:
        return self.compared > 0 and self.difference is None


def verify_resume(root: Path, run_dir: Path, settings: Config, *, stage: str, steps: int) -> dict[str, Any]:
    """Run both trials under `run_dir`/verify-resume and compare them. Raises UserError where a trial fails by itself."""
    home = run_dir / "verify-resume"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    trial_settings(settings, stage, steps, home)
    straight, interrupted = home / "straight", home / "interrupted"
    with console.progress("straight", 3) as bar:
        _train(home, root, straight, stage)
        bar.update(bar.task_ids[0], completed=1, description=f"killed after {steps}")
        _train_until(home, root, interrupted, stage, steps)
        bar.update(bar.task_ids[0], completed=2, description="resumed")
        _train(home, root, interrupted, stage)
        bar.update(bar.task_ids[0], completed=3)
    found = compare(straight / stage, interrupted / stage)
    rows = [
        (one.what, one.compared, "yes" if one.equal else f"no: {one.difference or 'nothing to compare'}")
        for one in found
    ]
    console.table(
        f"{2 * steps} steps straight, and {steps} + kill -9 + {steps}",
        ("compared", "count", "bit for bit"),
        rows,
    )
    comparisons = {one.what: {"compared": one.compared, "difference": one.difference} for one in found}
    return {
        "command": "verify-resume",
        "equal": all(one.equal for one in found),
        "stage": stage,
        "comparisons": comparisons,
    }


def trial_settings(settings: Config, stage: str, steps: int, home: Path) -> Path:
    """The configuration of the trials, as a file: the stage alone, from random weights, saved in its middle."""
    import yaml

    plan = settings.train.stage(stage).model_copy(
        update={"takes_from": None, "starts_fresh": [], "steps": 2 * steps}
    )
    checkpoint = settings.train.checkpoint.model_copy(update={"every": steps, "keep": 2})
    update = {"stages": [plan], "checkpoint": checkpoint, "trace": True, "fixed_steps": 0}
    document = settings.model_copy(update={"train": settings.train.model_copy(update=update)}).model_dump(
        mode="json"
    )
    document["tracking"] |= {"uri": "", "folder": str((home / "mlflow").absolute())}
    path = home / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def compare(straight: Path, interrupted: Path) -> list[Comparison]:
    """Losses, sample ids and weights that two runs of a stage left in their folders."""
    one, other = read_traces(straight), read_traces(interrupted)
    steps = sorted({*one, *other})
    compared = [
        Comparison(
            what,
            len(steps),
            next((f"step {s + 1}" for s in steps if _part(one, s, key) != _part(other, s, key)), None),
        )
        for what, key in (("losses", "losses"), ("sample ids", "keys"))
    ]
    return [
        *compared,
        *(_compare_tensors(straight / name, interrupted / name) for name in _weight_files(straight)),
    ]


def read_traces(folder: Path) -> dict[int, dict[str, Any]]:
    """Of each step (0-based) the losses and the keys by worker; where a step was run twice, both must have been the same."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("trace-*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            step = found.setdefault(entry["step"], {"losses": {}, "keys": {}})
            for name in step:
                before = step[name].setdefault(path.stem, entry[name])
                if before != entry[name]:
                    step[name][path.stem] = [before, entry[name]]
    return found


def _part(trace: dict[int, dict[str, Any]], step: int, key: str) -> Any:
    return trace.get(step, {}).get(key)


def _weight_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _compare_tensors(one: Path, other: Path) -> Comparison:
    import torch
    from safetensors.torch import load_file

    what = "weights" if one.stem == "model" else "averaged weights"
    if not other.is_file():
        return Comparison(what, 0, f"{other} is missing")
    these, those = load_file(one), load_file(other)
    differing = [name for name in {**these, **those} if name not in these or name not in those]
    differing += [name for name in these if name in those and not torch.equal(these[name], those[name])]
    return Comparison(what, len(these), differing[0] if differing else None)


@contextmanager
def _trial(home: Path, root: Path, run_dir: Path, stage: str) -> Iterator[subprocess.Popen[bytes]]:
    """`uniavgen train` in a process of its own; its words go to a file. Raises UserError where it fails by itself."""
    said = run_dir.with_suffix(".log")
    arguments = [
        "train",
        stage,
        "--corpus",
        str(root),
        "--run",
        str(run_dir),
        "--config",
        str(home / "config.yaml"),
    ]
    with said.open("ab") as log:
        process = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_all(process.pid)
            process.wait()
    if process.returncode > 0:
        last = (said.read_text(errors="replace").strip().splitlines() or ["no word"])[-1]
        raise UserError(
            f"a trial failed: {last}", where=said, hint="make this command work first", kind="trial-failed"
        )


def _train(home: Path, root: Path, run_dir: Path, stage: str) -> None:
    with _trial(home, root, run_dir, stage) as process:
        process.wait()


def _train_until(home: Path, root: Path, run_dir: Path, stage: str, step: int) -> None:
    """Train, and kill everything as soon as the checkpoint after `step` steps stands.

    Raises UserError where the training was over before that: then nothing would be proved.
    """
    from uniavgen.train.checkpoint.run_folder import RunFolder

    folder = RunFolder(run_dir, stage)
    with _trial(home, root, run_dir, stage) as process:
        while process.poll() is None and step not in folder.steps():
            time.sleep(0.02)
    if process.returncode == 0:
        hint = "raise --steps, so that there is time between the checkpoint and the end"
        raise UserError(
            "the training ended before it could be killed", where=run_dir, hint=hint, kind="trial-failed"
        )


def kill_all(pid: int) -> None:
    """SIGKILL to a process and all that it started, Ray's workers among them."""
    import psutil

    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family[:-1], timeout=30)  # the process itself is its parent's to wait for
