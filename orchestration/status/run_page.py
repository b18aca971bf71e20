"""The page of a training run, which works offline: losses, speed, plan and actual, events, videos."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from uniavgen.orchestration.status.page import by_kind, clock, process_line
from uniavgen.orchestration.status.run_status import run_status, stage_folders
from uniavgen.shards.atomic_files import replace_file
from uniavgen.shards.jsonl import read_rows
from uniavgen.train.checkpoint.run_folder import RunFolder

MAX_POINTS = 1000
"""Points of a line; more are averaged in groups."""
MAX_EVENTS = 200
MAX_VIDEOS = 60
CHARTS = (
    ("losses", ("smoothed/loss/",), "smoothed over about 50 steps, by modality"),
    ("losses by task", ("smoothed/task/",), "smoothed; a task is drawn once a step"),
    ("losses on clips of val", ("validation/",), "fixed noise, comparable over the run"),
    ("speed", ("time/samples_per_s",), "samples per second"),
    ("seconds of a step", ("time/step_s", "time/data_wait_s"), "with the wait for data"),
    ("gradient norm and learning rate", ("grad_norm", "lr"), "on logarithmic axes"),
    ("face masks", ("mask_iou/",), "overlap of predicted and detected faces"),
    ("interaction", ("output_norm/",), "norm of Wo; 0 means that a layer is unused"),
)
"""Title, prefixes of the metrics, and what they are."""
LOGARITHMIC = ("gradient norm and learning rate",)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin: 2em 0 0.3em; }
h3 { font-size: 1em; margin: 1em 0 0; }
table { border-collapse: collapse; font-size: 0.9em; } th, td { padding: 0.2em 0.8em; text-align: left; }
th { border-bottom: 2px solid #ccc; } td { border-bottom: 1px solid #eee; vertical-align: top; }
.n { text-align: right; font-variant-numeric: tabular-nums; } .dim { color: #666; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 0 1em; }
video { width: 100%; background: #000; } figure { margin: 0; } figcaption { font-size: 0.85em; }
</style></head><body>
<h1>{{ name }}</h1>
<p>Training {{ process }}. Written {{ written }}.</p>
<table><tr>{% for column in stage_columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in stage_rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
<h2>Plan and actual</h2>
<p class="dim">The plan is computed from the settings, as by <code>uniavgen plan</code>.</p>
<table><tr><th>stage</th><th>what</th><th class="n">plan</th><th class="n">actual</th></tr>
{% for row in plan_rows %}<tr><td>{{ row[0] }}</td><td>{{ row[1] }}</td><td class="n">{{ row[2] }}</td>
<td class="n">{{ row[3] }}</td></tr>{% endfor %}</table>
{% for stage in stages %}
<h2 id="{{ stage.name }}">Stage {{ stage.name }}</h2>
<div class="charts">{% for chart in stage.charts %}<div><h3>{{ chart.title }}</h3>
<div class="dim">{{ chart.about }}</div>{{ chart.html|safe }}</div>{% endfor %}</div>
{% if stage.events %}<h3>events</h3>
<table><tr><th>time</th><th>kind</th><th>what</th></tr>
{% for event in stage.events %}<tr><td>{{ event.at }}</td><td>{{ event.kind }}</td>
<td>{{ event.text }}</td></tr>
{% endfor %}</table>{% endif %}
{% endfor %}
<h2>Videos</h2>
{% if not videos %}<p class="dim">none yet: <code>uniavgen sample</code>, or
<code>train.validation.films</code></p>{% endif %}
<div class="grid">{% for video in videos %}<figure><video controls preload="none" src="{{ video.url }}"
{% if video.poster %}poster="{{ video.poster }}"{% endif %}></video>
<figcaption>{{ video.name }}</figcaption></figure>
{% endfor %}</div>
</body></html>
"""


def write_run_page(run_dir: Path) -> Path:
    """Write `<run>/report/index.html` and return it. Raises UserError if there is no run."""
    from jinja2 import Environment, StrictUndefined

    status = run_status(run_dir)
    folders = stage_folders(run_dir)
    path = run_dir.absolute() / "report" / "index.html"
    stages: list[dict[str, Any]] = []
    for folder in folders:
        charts = draw_charts(metric_rows(folder), first=not any(stage["charts"] for stage in stages))
        stages.append({"name": folder.stage, "charts": charts, "events": event_rows(folder)})
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    html = page.render(
        name="/".join(run_dir.absolute().parts[1:][-2:]),
        process=process_line(status),
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        stage_columns=STAGE_COLUMNS,
        stage_rows=[stage_row(stage) for stage in status["stages"]],
        plan_rows=[row for folder in folders for row in plan_rows(folder, metric_rows(folder))],
        stages=stages,
        videos=videos_of(run_dir.absolute(), path.parent),
    )
    path.parent.mkdir(exist_ok=True)
    replace_file(path, html.encode("utf-8", "backslashreplace"))
    return path


STAGE_COLUMNS = ("stage", "state", "steps done", "left", "steps/s", "loss", "checkpoint", "events")


def stage_row(stage: Mapping[str, Any]) -> tuple[str, ...]:
    """A stage of `run_status` as texts, in the order of `STAGE_COLUMNS`."""
    checkpoint = stage["checkpoint"]
    return (
        stage["stage"],
        stage["state"],
        f"{stage['done']:,}",
        f"{stage['left']:,}",
        _number(stage["steps_per_s"]),
        _number(stage["loss"]),
        "–" if checkpoint is None else f"step {checkpoint}, {clock(stage['checkpoint_at'])}",
        by_kind(stage["events"]),
    )


def metric_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of a stage's metrics, by step. A step that was repeated after a resume counts as it ended."""
    steps: dict[int, dict[str, Any]] = {}
    for row in read_rows(folder.path / "metrics.jsonl").rows:
        steps[row["step"]] = steps.get(row["step"], {}) | row
    return [steps[step] for step in sorted(steps)]


def draw_charts(rows: Sequence[Mapping[str, Any]], *, first: bool) -> list[dict[str, str]]:
    """Charts of the metrics that the rows have. Only the `first` one of a page has plotly's JavaScript."""
    import plotly.graph_objects as go

    charts: list[dict[str, str]] = []
    names = sorted({name for row in rows for name in row})
    for title, prefixes, about in CHARTS:
        lines = {name: line for name in names if name.startswith(prefixes) and (line := thinned(rows, name))}
        if not lines:
            continue
        shown = {name: name.removeprefix(prefixes[0]) or name for name in lines}
        figure = go.Figure(
            [
                go.Scatter(x=[x for x, _ in line], y=[y for _, y in line], name=shown[name], mode="lines")
                for name, line in lines.items()
            ]
        )
        figure.update_layout(
            height=300, template="plotly_white", margin={"l": 40, "r": 10, "t": 10, "b": 30}, showlegend=True
        )
        figure.update_xaxes(title="step")
        if title in LOGARITHMIC:
            figure.update_yaxes(type="log")
        html = figure.to_html(
            full_html=False, include_plotlyjs=first and not charts, config={"displayModeBar": False}
        )
        charts.append({"title": title, "about": about, "html": html})
    return charts


def thinned(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Step and value of a metric, at most `MAX_POINTS`: more are averaged in groups of equal size."""
    points = [(float(row["step"]), float(row[name])) for row in rows if name in row]
    size = -(-len(points) // MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), max(1, size))]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]


def event_rows(folder: RunFolder) -> list[dict[str, str]]:
    """The newest events of a stage."""
    rows = read_rows(folder.events).rows[-MAX_EVENTS:]
    return [
        {
            "at": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(row.get("time", 0)))),
            "kind": str(row.get("event", "")),
            "text": str(row.get("text", "")),
        }
        for row in rows
    ]


def plan_rows(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """What the settings predict for a stage, beside what was measured: stage, what, plan, actual."""
    from uniavgen.orchestration.planning.training_plan import DEFAULT_MFU
    from uniavgen.train.config import TrainConfig
    from uniavgen.train.planning import sample_flops, stage_memory

    state = folder.read()
    config = TrainConfig.model_validate(state["config"])
    stage = config.stage(folder.stage)
    done = max((int(row["step"]) for row in rows), default=0)
    speed, mfu = _mean(rows, "time/samples_per_s"), _mean(rows, "compute/mfu")
    peaks = [row["memory/device_peak_gib"] for row in rows if "memory/device_peak_gib" in row]
    planned_h = stage.steps * stage.batch / speed / 3600 if speed else None
    took_h = sum(row.get("time/step_s", 0.0) for row in rows) / 3600
    planned_gib = stage_memory(config, stage, config.workers).peak / 2**30
    table = [
        ("steps", f"{stage.steps:,}", f"{done:,}"),
        ("samples", f"{stage.steps * stage.batch:,}", f"{done * stage.batch:,}"),
        ("TFLOP of a sample", _number(sample_flops(config, stage) / 1e12), "–"),
        ("share of the peak FLOP/s", _number(DEFAULT_MFU), _number(mfu)),
        ("hours of steps, by the mean speed", _number(planned_h), _number(took_h)),
        ("peak memory of a GPU, GiB", _number(planned_gib), _number(max(peaks, default=None))),
        ("share of time waiting for data", "0", _number(_wait_share(rows))),
    ]
    return [(folder.stage, *row) for row in table]


def videos_of(run_dir: Path, page_folder: Path) -> list[dict[str, str]]:
    """Validation videos and samples, the newest first, with URLs relative to the page."""
    found = [*run_dir.glob("*/validation/*.mp4"), *(run_dir / "samples").glob("*.mp4")]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    videos = []
    for path in found[:MAX_VIDEOS]:
        sheet = path.with_suffix(".png")
        videos.append(
            {
                "name": str(path.relative_to(run_dir)),
                "url": quote(os.path.relpath(path, page_folder)),
                "poster": quote(os.path.relpath(sheet, page_folder)) if sheet.is_file() else "",
            }
        )
    return videos


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else None


def _wait_share(rows: Sequence[Mapping[str, Any]]) -> float | None:
    step, wait = (_mean(rows, name) for name in ("time/step_s", "time/data_wait_s"))
    return wait / step if step and wait is not None else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
