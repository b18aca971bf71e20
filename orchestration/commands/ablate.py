"""`uniavgen ablate`: repeat the paper's ablations on a small synthetic data set, and compare the outcome.

The run folder gets `trainings/`, `experiments/<key>/result.json`, `summary.json` and `index.html`. Existing
results are not computed again. MLflow gets a parent run with a child run per experiment.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import ConfigOption, JsonOption, SetOption, run_command
from uniavgen.shards.errors import UsageError, choice_hint

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.tracking.mlflow_runs import Run
    from uniavgen.train.ablation.config import AblateConfig
    from uniavgen.train.ablation.experiment import Job
    from uniavgen.train.ablation.tables import Experiment
    from uniavgen.train.ablation.verdict import Verdict

Results = dict[str, dict[str, Any]]
"""Content of every experiment's result.json, by the experiment's key."""

MEASURES = {
    "sync": "sync",
    "sync_error_ms": "sync error, ms",
    "timbre": "timbre",
    "expression": "expression",
    "video_loss": "video loss",
    "audio_loss": "audio loss",
    "mask_iou": "mask IoU",
}
"""Measures of the tables and their headings."""

PRESETS = ("quick", "full")
JUDGEMENTS = ("reproduced", "undecided", "reversed")


def ablate(
    run: Annotated[Path, typer.Option("--run", help="Folder of trainings, results and page.", metavar="DIR")],
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: Annotated[
        str, typer.Option("--preset", help="quick: the interaction rows; full: every table.", metavar="NAME")
    ] = "quick",
) -> None:
    """Repeat the paper's ablations on a small synthetic data set.

    A small model is trained for every row of the paper's tables and several seeds. The data set has a known
    law that relates video and audio, so every measure has a reference value.

    Example: uniavgen ablate --run data/ablation --preset full
    """

    def body(settings: Config) -> dict[str, Any]:
        if preset not in PRESETS:
            raise UsageError(
                f"unknown preset {preset!r}", where="--preset", hint=choice_hint(preset, PRESETS)
            )
        return run_ablation(run, settings)

    run_command(body, f"ablate-{preset}" if preset in PRESETS else "tiny", config, set_, json_)


def run_ablation(run_dir: Path, settings: Config) -> dict[str, Any]:
    """Run the missing experiments, then read all results, compare, print, draw and record them.

    Raises UserError if another process works in the folder, or the loss of a training became NaN or Inf.
    """
    from rich.markup import escape

    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.output.ablation_page import write_page
    from uniavgen.orchestration.tracking.mlflow_runs import flatten, open_run
    from uniavgen.shards.atomic_files import locked, replace_file
    from uniavgen.train.ablation.tables import experiments

    config = settings.ablate
    planned = experiments(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = locked(run_dir / ".lock", "another ablation runs in this folder")
    name = settings.tracking.run_name("ablation", run_dir)
    note = (
        f"The paper's ablations on synthetic data: {len(planned)} experiments in `{run_dir}`, each a run "
        "below this one. The artifact `ablation/index.html` compares them with the paper."
    )
    with lock, open_run(settings.tracking, run_dir, name, note) as parent:
        parent.params(flatten(config.model_dump(mode="json"), "ablate."))
        trained = _run_missing(planned.values(), run_dir, settings, parent)
        results = {each.key: _read_result(run_dir, each) for each in planned.values()}
        summary = summarise(config, results) | {"trained": trained}
        _show(summary)
        replace_file(run_dir / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        page = write_page(run_dir / "index.html", summary)
        for path in (run_dir / "summary.json", page):
            parent.artifact(path, "ablation")
        parent.metrics({f"verdicts/{name}": count for name, count in summary["judgements"].items()})
    console.console.print(f"open [bold]{escape(str(page))}[/] in a browser")
    return {"command": "ablate", "run": str(run_dir), "page": str(page), **summary}


def missing_jobs(experiments: Iterable[Experiment], run_dir: Path) -> tuple[list[Job], list[Job]]:
    """Jobs without a result: trainings of single branches; trainings of rows with their measurements."""
    from uniavgen.train.ablation.experiment import Job, result_file, weights_file

    by_training: dict[str, list[Experiment]] = {}
    for entry in {each.key: each for each in experiments}.values():
        if not result_file(run_dir, entry.key).is_file():
            by_training.setdefault(entry.training.key, []).append(entry)
    folder = str(run_dir.absolute())
    rows = [Job(group[0].training, tuple(group), folder) for group in by_training.values()]
    initial = {
        job.training.begins_with.key: job.training.begins_with for job in rows if job.training.begins_with
    }
    branches = [
        Job(training, (), folder)
        for key, training in initial.items()
        if not weights_file(run_dir, key).is_file()
    ]
    return branches, rows


def summarise(config: AblateConfig, results: Results) -> dict[str, Any]:
    """Rows with means and intervals, the paper's values, a verdict on every order that the paper reports."""
    from uniavgen.train.ablation.experiment import reference_levels
    from uniavgen.train.ablation.tables import TABLES, experiment

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
        judgement: sum(entry["judgement"] == judgement for entry in verdicts) for judgement in JUDGEMENTS
    }
    return {
        "seeds": config.seeds,
        "levels": reference_levels(config),
        "tables": tables,
        "verdicts": verdicts,
        "judgements": counts,
    }


def _run_missing(experiments: Iterable[Experiment], run_dir: Path, settings: Config, parent: Run) -> int:
    """Run the missing jobs as Ray tasks, one per CPU at a time, and return the number of trainings."""
    from uniavgen.orchestration.output import console
    from uniavgen.shards.cluster import map_unordered, ray_running
    from uniavgen.train.ablation.experiment import run_job

    branches, rows = missing_jobs(experiments, run_dir)
    by_key = {entry.key: entry for entry in experiments}
    with (
        ray_running() if rows else nullcontext(),
        console.progress("trainings", len(branches) + len(rows)) as bar,
    ):
        # the rows start from the branches' weights, so the branches come first
        for jobs in (branches, rows):
            for keys in map_unordered(run_job, jobs, on_ray=bool(jobs)):
                bar.advance()
                for key in keys:
                    _record(by_key[key], run_dir, settings, parent)
    for key, entry in by_key.items():
        if not (_result_folder(run_dir, key) / "tracking.json").is_file():
            _record(entry, run_dir, settings, parent)
    return len(branches) + len(rows)


def _record(entry: Experiment, run_dir: Path, settings: Config, parent: Run) -> None:
    """Write a child run with the experiment's settings, measures and loss curve."""
    from uniavgen.orchestration.tracking.mlflow_runs import flatten, open_run

    result = _read_result(run_dir, entry)
    note = (
        f"One training with seed {entry.training.seed} and its measurements on {entry.clips} clips. All its "
        "settings are parameters of this run; `loss/` is its loss curve."
    )
    folder = _result_folder(run_dir, entry.key)
    with open_run(settings.tracking, folder, f"ablation {entry.key}", note, parent=parent) as child:
        child.params(flatten(entry.model_dump(mode="json", exclude={"training": {"begins_with"}})))
        for point in result["curve"]:
            child.metrics(
                {f"loss/{name}": value for name, value in point.items() if name != "step"}, int(point["step"])
            )
        child.metrics(result["measures"])


def _result_folder(run_dir: Path, key: str) -> Path:
    from uniavgen.train.ablation.experiment import result_file

    return result_file(run_dir, key).parent


def _read_result(run_dir: Path, entry: Experiment) -> dict[str, Any]:
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
    from uniavgen.train.ablation.tables import ROLES, TABLES
    from uniavgen.train.ablation.verdict import compare

    verdicts = []
    for better, worse, role in TABLES[table].orders():
        pair = [[measures[ROLES[role]] for measures in values[row]] for row in (better, worse)]
        verdict: Verdict = compare(better, worse, role, *pair)
        paper = {row.name: row.paper.get(role) for row in TABLES[table].rows}
        entry = {"paper": [paper[better], paper[worse]], "judgement": verdict.judgement}
        verdicts.append(dataclasses.asdict(verdict) | entry)
    return verdicts


def _show(summary: dict[str, Any]) -> None:
    from uniavgen.orchestration.output import console

    for table in summary["tables"]:
        names = [name for name in MEASURES if any(name in row["measures"] for row in table["rows"])]
        roles = [role for role in ("LS", "TC", "EC") if any(role in row["paper"] for row in table["rows"])]
        rows = [
            (
                row["row"],
                *(
                    format_interval(row["measures"][name]) if name in row["measures"] else None
                    for name in names
                ),
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
                format_interval(v["difference"]),
                f"{v['confidence']:.3f}",
                v["judgement"],
            )
            for v in summary["verdicts"]
        ],
    )
    console.print_line("; ".join(f"{count} {name}" for name, count in summary["judgements"].items()))


def format_interval(interval: dict[str, float]) -> str:
    """Mean and half width of an interval, as `0.53 ±0.04`."""
    return f"{interval['mean']:.3g} ±{(interval['high'] - interval['low']) / 2:.2g}"
