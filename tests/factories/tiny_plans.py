"""A plan of three tiny steps that work on files, for tests of what runs, and when.

`copy` copies the sources, `join` joins the copies, `count` counts the letters of the joined file. Each is
slow enough to be killed, and adds a line to `log.txt` when it begins to work on a file.
"""

import os
import sys
import time
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniavgen.orchestration.config import Config
from uniavgen.orchestration.plan_runs.plan_file import Plan, Steps
from uniavgen.orchestration.plan_runs.runner import run_steps
from uniavgen.orchestration.plan_runs.state import PlanState
from uniavgen.orchestration.plan_runs.steps import Job, Step, file_digest
from uniavgen.shards.atomic_files import locked, replace_file
from uniavgen.shards.heartbeat import Heartbeat


def tiny_job(folder: Path, **settings: Any) -> Job:
    """A plan over the files of `folder/sources`."""
    steps = Steps.model_validate({"ingest": {}, "curate": {}, "shard": {}})
    plan = Plan(
        name="tiny", home=folder, folder=folder, corpus=folder / "corpus", sources=["sources"], steps=steps
    )
    config = Config()
    for name, value in settings.items():
        setattr(config.curate, name, value)
    return Job(plan, config)


def tiny_steps(pause_s: float = 0.0) -> tuple[Step, Step, Step]:
    """The steps, named as those of a real plan: `ingest` copies, `curate` joins, `shard` counts."""

    def note(job: Job, text: str) -> None:
        with (job.plan.folder / "log.txt").open("a") as log:
            log.write(f"{text}\n")
        time.sleep(pause_s)

    def copy(job: Job) -> dict[str, Any]:
        copies = job.plan.folder / "copies"
        copies.mkdir(exist_ok=True)
        for path in sorted((job.plan.folder / "sources").iterdir()):
            if not (copies / path.name).exists() or file_digest(copies / path.name) != file_digest(path):
                note(job, f"copy {path.name}")
                replace_file(copies / path.name, path.read_bytes())
        return {"copies": len(list(copies.iterdir()))}

    def join(job: Job) -> dict[str, Any]:
        note(job, "join")
        text = b"".join(path.read_bytes() for path in sorted((job.plan.folder / "copies").iterdir()))
        replace_file(job.plan.folder / "joined.txt", text)
        return {"bytes": len(text)}

    def count(job: Job) -> dict[str, Any]:
        note(job, "count")
        letters = len((job.plan.folder / "joined.txt").read_text())
        replace_file(job.plan.folder / "count.txt", f"{letters}\n".encode())
        return {"letters": letters}

    def files(folder: str) -> Any:
        return lambda job: {
            path.name: file_digest(path) for path in sorted((job.plan.folder / folder).glob("*"))
        }

    def file(name: str) -> Any:
        return lambda job: {name: file_digest(job.plan.folder / name)}

    code = ("shards.jsonl",)
    return (
        Step("ingest", copy, files("sources"), files("copies"), code=code),
        Step("curate", join, files("copies"), file("joined.txt"), ("ingest",), ("curate",), code),
        Step("shard", count, file("joined.txt"), file("count.txt"), ("curate",), code=code),
    )


def run_tiny(folder: Path, pause_s: float = 0.0, **settings: Any) -> dict[str, dict[str, Any]]:
    """Run the plan without MLflow. Returns what happened, by step."""
    job = tiny_job(folder, **settings)
    state = PlanState(job.plan.state_folder)
    state.create()
    with locked(state.lock, "busy"), Heartbeat(state.alive) as beat, chdir(folder):
        return run_steps(job, tiny_steps(pause_s), state, beat)


def with_code(steps: tuple[Step, ...], code: str) -> tuple[Step, ...]:
    """The steps, as if all of them ran this module."""
    return tuple(replace(step, code=(code,)) for step in steps)


if __name__ == "__main__":
    print(os.getpid(), flush=True)
    run_tiny(Path(sys.argv[1]), float(sys.argv[2]))
