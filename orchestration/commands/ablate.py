"""`uniavgen ablate`: the paper's ablations on the small world, side by side, resumable, tracked, and judged against the paper.

In: the `ablate` settings and a run folder. Out, in that folder: `trainings/`, `experiments/<key>/result.json` (what exists is
not done again), `summary.json` and `index.html`; in MLflow a parent run with a child for every experiment.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from uniavgen.orchestration import console
from uniavgen.orchestration.ablation_page import write_page
from uniavgen.orchestration.tracking.mlflow_runs import Run, flat, open_run
from uniavgen.shards.atomic_files import locked, replace_file

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.train.ablation.config import AblateConfig
    from uniavgen.train.ablation.experiment import Job
    from uniavgen.train.ablation.plan import Experiment
    from uniavgen.train.ablation.verdict import Verdict

Results = dict[str, dict[str, Any]]
"""What every experiment's result.json holds, by the experiment's key."""

MEASURES = {
    "sync": "sync",
    "sync_error_ms": "sync error, ms",
    "timbre": "timbre",
    "expression": "expression",
    "video_loss": "video loss",
    "audio_loss": "audio loss",
    "mask_iou": "mask IoU",
}
"""Measures of the tables and how they are headed."""


def run_ablation(run_dir: Path, settings: Config) -> dict[str, Any]:
    """Do what is missing of the plan, then read every result, judge, print, draw and record.

    Raises UserError where another process works in the folder, or a training's loss leaves the numbers.
    """
    from uniavgen.train.ablation.plan import experiments

    config = settings.ablate
    plan = experiments(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    busy = locked(run_dir / ".lock", "another ablation works in this folder")
    with busy, open_run(settings.tracking, run_dir, f"ablation {run_dir.name}") as parent:
        parent.params(flat(config.model_dump(mode="json"), "ablate."))
        done = _work(plan.values(), run_dir, settings, parent)
        results = {each.key: _read(run_dir, each) for each in plan.values()}
        summary = summarise(config, results) | {"trained": done}
        _show(summary)
        replace_file(run_dir / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        page = write_page(run_dir / "index.html", summary)
        for path in (run_dir / "summary.json", page):
            parent.artifact(path, "ablation")
        parent.metrics({f"verdicts/{name}": count for name, count in summary["judgements"].items()})
    console.console.print(f"open [bold]{escape(str(page))}[/] in a browser")
    return {"command": "ablate", "run": str(run_dir), "page": str(page), **summary}


def missing_jobs(plan: Iterable[Experiment], run_dir: Path) -> tuple[list[Job], list[Job]]:
    """What is still to do: trainings of the branches alone, then those of the rows with what is to be measured of them."""
    from uniavgen.train.ablation.experiment import Job, result_file, weights_file

    by_training: dict[str, list[Experiment]] = {}
    for entry in {each.key: each for each in plan}.values():
        if not result_file(run_dir, entry.key).is_file():
            by_training.setdefault(entry.training.key, []).append(entry)
    folder = str(run_dir.absolute())
    rows = [Job(group[0].training, tuple(group), folder) for group in by_training.values()]
    begun = {
        job.training.begins_with.key: job.training.begins_with for job in rows if job.training.begins_with
    }
    branches = [
        Job(training, (), folder)
        for key, training in begun.items()
        if not weights_file(run_dir, key).is_file()
    ]
    return branches, rows


def summarise(config: AblateConfig, results: Results) -> dict[str, Any]:
    """Rows with their means and intervals, the paper's figures, and the verdict on every order that the paper reports."""
    from uniavgen.train.ablation.experiment import reference_levels
    from uniavgen.train.ablation.plan import TABLES, experiment

    tables, verdicts = [], []
    for name in config.tables:
        values = {
            row.name: [results[experiment(config, row, seed).key]["measures"] for seed in range(config.seeds)]
            for row in TABLES[name].rows
        }
        rows = [
            {
                "row": row.name,
                "paper": row.paper,
                "measures": _intervals(values[row.name]),
                "seeds": values[row.name],
            }
            for row in TABLES[name].rows
        ]
        tables.append({"table": name, "title": TABLES[name].title, "rows": rows})
        verdicts += [{"table": name, **entry} for entry in _verdicts(name, values)]
    counts = {
        judgement: sum(entry["judgement"] == judgement for entry in verdicts)
        for judgement in ("reproduced", "undecided", "reversed")
    }
    return {
        "seeds": config.seeds,
        "levels": reference_levels(config),
        "tables": tables,
        "verdicts": verdicts,
        "judgements": counts,
    }


def _work(plan: Iterable[Experiment], run_dir: Path, settings: Config, parent: Run) -> int:
    """Run the missing jobs as Ray tasks, as many side by side as there are CPUs; the number of trainings done."""
    from uniavgen.shards.cluster import map_unordered, ray_running
    from uniavgen.train.ablation.experiment import run_job

    branches, rows = missing_jobs(plan, run_dir)
    by_key = {entry.key: entry for entry in plan}
    with (
        ray_running() if rows else nullcontext(),
        console.progress("trainings", len(branches) + len(rows)) as bar,
    ):
        # rows begin with the branches, so those come first
        for jobs in (branches, rows):
            for keys in map_unordered(run_job, jobs, on_ray=bool(jobs)):
                bar.advance(bar.task_ids[0])
                for key in keys:
                    _record(by_key[key], run_dir, settings, parent)
    for key, entry in by_key.items():
        if not (_home(run_dir, key) / "tracking.json").is_file():
            _record(entry, run_dir, settings, parent)
    return len(branches) + len(rows)


def _record(entry: Experiment, run_dir: Path, settings: Config, parent: Run) -> None:
    """A child run with an experiment's settings, measures and loss curve."""
    result = _read(run_dir, entry)
    with open_run(
        settings.tracking, _home(run_dir, entry.key), f"ablation {entry.key}", parent=parent
    ) as child:
        child.params(flat(entry.model_dump(mode="json", exclude={"training": {"begins_with"}})))
        for point in result["curve"]:
            child.metrics(
                {f"loss/{name}": value for name, value in point.items() if name != "step"}, int(point["step"])
            )
        child.metrics(result["measures"])


def _home(run_dir: Path, key: str) -> Path:
    from uniavgen.train.ablation.experiment import result_file

    return result_file(run_dir, key).parent


def _read(run_dir: Path, entry: Experiment) -> dict[str, Any]:
    from uniavgen.train.ablation.experiment import result_file

    document: dict[str, Any] = json.loads(result_file(run_dir, entry.key).read_text())
    return document


def _intervals(seeds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    from uniavgen.train.ablation.verdict import interval

    return {
        name: dataclasses.asdict(interval([measures[name] for measures in seeds]))
        for name in MEASURES
        if name in seeds[0]
    }


def _verdicts(table: Any, values: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    from uniavgen.train.ablation.plan import ROLES, TABLES
    from uniavgen.train.ablation.verdict import compare

    found = []
    for better, worse, role in TABLES[table].orders():
        pair = [[measures[ROLES[role]] for measures in values[row]] for row in (better, worse)]
        verdict: Verdict = compare(better, worse, role, *pair)
        paper = {row.name: row.paper.get(role) for row in TABLES[table].rows}
        entry = {"paper": [paper[better], paper[worse]], "judgement": verdict.judgement}
        found.append(dataclasses.asdict(verdict) | entry)
    return found


def _show(summary: dict[str, Any]) -> None:
    for table in summary["tables"]:
        names = [name for name in MEASURES if any(name in row["measures"] for row in table["rows"])]
        roles = [role for role in ("LS", "TC", "EC") if any(role in row["paper"] for row in table["rows"])]
        rows = [
            (
                row["row"],
                *(spread(row["measures"][name]) if name in row["measures"] else None for name in names),
                *(row["paper"].get(role) for role in roles),
            )
            for row in table["rows"]
        ]
        levels = [
            (
                level,
                *(f"{values[name]:.3g}" if name in values else None for name in names),
                *(None for _ in roles),
            )
            for level, values in summary["levels"].items()
        ]
        columns = ("row", *(MEASURES[name] for name in names), *(f"paper {role}" for role in roles))
        console.table(
            f"{table['title']}: mean and 95 % interval over {summary['seeds']} seeds", columns, rows + levels
        )
    console.table(
        "orders that the paper reports",
        ("table", "measure", "better", "worse", "difference", "confidence", ""),
        [
            (
                v["table"],
                v["role"],
                v["better"],
                v["worse"],
                spread(v["difference"]),
                f"{v['confidence']:.3f}",
                v["judgement"],
            )
            for v in summary["verdicts"]
        ],
    )
    console.console.print("; ".join(f"{count} {name}" for name, count in summary["judgements"].items()))


def spread(found: dict[str, float]) -> str:
    """An interval as people read it: mean and half width."""
    return f"{found['mean']:.3g} ±{(found['high'] - found['low']) / 2:.2g}"
