"""`uniavgen verify-resume`: prove on this machine that an interrupted training loses nothing.

It trains a stage for 2N steps without interruption, and again with every process killed (-9) after the
checkpoint of step N. Both start from random weights and run `uniavgen train`. Losses, sample ids and weights
are compared bit for bit.
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
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CheckFailed, CorpusOption, RunOption, command

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config

POLL_S = 0.02
"""Seconds between two looks for the checkpoint."""
KILL_TIMEOUT_S = 30
"""Seconds until killed processes must have ended."""


@dataclass(frozen=True)
class Comparison:
    """A comparison: number of compared items, and the first one that differs (None: all are equal)."""

    what: str
    compared: int
    difference: str | None

    @property
    def equal(self) -> bool:
        return self.compared > 0 and self.difference is None


@command
def verify_resume(
    settings: Config,
    corpus: CorpusOption,
    run: RunOption,
    stage: Annotated[
        str, typer.Option("--stage", help="Training stage to try.", metavar="STAGE")
    ] = "multitask",
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Steps before and after the kill.", metavar="N")
    ] = 5,
) -> dict[str, Any]:
    """Prove that an interrupted training loses nothing.

    2N steps without interruption against N steps, kill -9 and N more steps: losses, sample ids and weights
    must be equal bit for bit. Exit code 1 if they are not.

    Example: uniavgen verify-resume --corpus data/corpus --run data/run
    """
    summary = compare_runs(corpus, run, settings, stage=stage, steps=steps)
    if not summary["equal"]:
        raise CheckFailed(summary)
    return summary


def compare_runs(root: Path, run_dir: Path, settings: Config, *, stage: str, steps: int) -> dict[str, Any]:
    """Run both trainings in `run_dir`/verify-resume and compare them. Raises UserError if one fails."""
    from uniavgen.orchestration.output import console

    home = run_dir / "verify-resume"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    write_trial_config(settings, stage, steps, home)
    straight, interrupted = home / "straight", home / "interrupted"
    with console.progress("without interruption", 3) as bar:
        _train(home, root, straight, stage)
        bar.update(1, label=f"killed after step {steps}")
        _train_until(home, root, interrupted, stage, steps)
        bar.update(2, label="resumed")
        _train(home, root, interrupted, stage)
        bar.update(3)
    results = compare(straight / stage, interrupted / stage)
    rows = [
        (
            result.what,
            result.compared,
            "yes" if result.equal else f"no: {result.difference or 'nothing to compare'}",
        )
        for result in results
    ]
    console.table(
        f"{2 * steps} steps without interruption, and {steps} + kill -9 + {steps}",
        ("compared", "count", "equal bit for bit"),
        rows,
    )
    comparisons = {
        result.what: {"compared": result.compared, "difference": result.difference} for result in results
    }
    return {
        "command": "verify-resume",
        "equal": all(result.equal for result in results),
        "stage": stage,
        "comparisons": comparisons,
    }


def write_trial_config(settings: Config, stage: str, steps: int, home: Path) -> Path:
    """Write the configuration of both trainings: one stage, from random weights, a checkpoint at `steps`."""
    import yaml

    trial = settings.train.stage(stage).model_copy(
        update={"takes_from": None, "starts_fresh": [], "from_scratch": True, "steps": 2 * steps}
    )
    checkpoint = settings.train.checkpoint.model_copy(update={"every": steps, "keep": 2})
    update = {"stages": [trial], "checkpoint": checkpoint, "trace": True, "fixed_steps": 0}
    document = settings.model_copy(update={"train": settings.train.model_copy(update=update)}).model_dump(
        mode="json"
    )
    document["tracking"] |= {"uri": "", "folder": str((home / "mlflow").absolute())}
    path = home / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def compare(straight: Path, interrupted: Path) -> list[Comparison]:
    """Compare losses, sample ids and weights in the folders of two runs of a stage."""
    traces = read_traces(straight), read_traces(interrupted)
    steps = sorted({*traces[0], *traces[1]})
    results = []
    for what, key in (("losses", "losses"), ("sample ids", "keys")):
        values = [{step: trace.get(step, {}).get(key) for step in steps} for trace in traces]
        first = next((f"step {step + 1}" for step in steps if values[0][step] != values[1][step]), None)
        results.append(Comparison(what, len(steps), first))
    return [
        *results,
        *(_compare_tensors(straight / name, interrupted / name) for name in _weight_files(straight)),
    ]


def read_traces(folder: Path) -> dict[int, dict[str, Any]]:
    """By step (0-based), the losses and sample keys of every rank.

    A step that ran twice with different values has a list of both.
    """
    traces: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("trace-*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            step = traces.setdefault(entry["step"], {"losses": {}, "keys": {}})
            for name in step:
                before = step[name].setdefault(path.stem, entry[name])
                if before != entry[name]:
                    step[name][path.stem] = [before, entry[name]]
    return traces


def _weight_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _compare_tensors(one: Path, other: Path) -> Comparison:
    import torch
    from safetensors.torch import load_file

    what = "weights" if one.stem == "model" else "averaged weights"
    if not other.is_file():
        return Comparison(what, 0, f"{other} is missing")
    left, right = load_file(one), load_file(other)
    differing = [name for name in {**left, **right} if name not in left or name not in right]
    differing += [name for name in left if name in right and not torch.equal(left[name], right[name])]
    return Comparison(what, len(left), differing[0] if differing else None)


@contextmanager
def _training(home: Path, root: Path, run_dir: Path, stage: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `uniavgen train` as a process with its output in a file. Raises UserError if it fails by itself."""
    from uniavgen.shards.errors import UserError

    log = run_dir.with_suffix(".log")
    arguments = [
        *("-P", "-m", "uniavgen"),  # -P: do not import from the current folder
        "train",
        stage,
        "--corpus",
        str(root),
        "--run",
        str(run_dir),
        "--config",
        str(home / "config.yaml"),
    ]
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_all(process.pid)
            process.wait()
    if process.returncode > 0:
        last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"the training failed by itself: {last}",
            where=log,
            hint="make `uniavgen train` work first",
            kind="trial-failed",
        )


def _train(home: Path, root: Path, run_dir: Path, stage: str) -> None:
    with _training(home, root, run_dir, stage) as process:
        process.wait()


def _train_until(home: Path, root: Path, run_dir: Path, stage: str, step: int) -> None:
    """Train, and kill every process as soon as the checkpoint of `step` is complete.

    Raises UserError if the training ended before the kill, because then nothing would be proved.
    """
    from uniavgen.shards.errors import UserError
    from uniavgen.train.checkpoint.run_folder import RunFolder

    folder = RunFolder(run_dir, stage)
    with _training(home, root, run_dir, stage) as process:
        while process.poll() is None and step not in folder.steps():
            time.sleep(POLL_S)
    if process.returncode == 0:
        raise UserError(
            "the training ended before it could be killed",
            where=run_dir,
            hint="raise --steps, so that more time passes between the checkpoint and the end",
            kind="trial-failed",
        )


def kill_all(pid: int) -> None:
    """Send SIGKILL to a process and to all its descendants, Ray's workers included."""
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
    psutil.wait_procs(family[:-1], timeout=KILL_TIMEOUT_S)  # the caller waits for the process itself
