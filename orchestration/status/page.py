"""Status documents as text for people, on stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from uniavgen.orchestration.output import console
from uniavgen.orchestration.output.ingest_display import format_duration


def show_corpus(status: Mapping[str, Any]) -> None:
    """Print the state of a corpus and of the ingests on it."""
    names = ("sources", "clips", "decided", "kept", "captions", "samples", "shards")
    counts = ", ".join(f"{status[name]:,} {name}" for name in names)
    console.print_line(f"corpus {status['corpus']}: {counts}")
    console.print_line(f"failures: {by_kind(status['failures'])}")
    if not status["ingests"]:
        console.print_line("no ingest is running")
    for ingest in status["ingests"]:
        console.print_line(f"ingest {process_line(ingest)}", style=_style(ingest))
        if "done" not in ingest:
            console.print_line("  starting workers")
            continue
        console.print_line(
            f"  {ingest['done']:,} sources done, {ingest['left']:,} left, {ingest['share']:.0%} of steps; "
            f"{ingest['video_s_per_s']:.2f} video s/s; {left_text(ingest)}; "
            f"failures: {by_kind(ingest['failures'])}"
        )
        columns = ("step", "done", "running", "left", "failed", "seconds")
        console.table("", columns, [tuple(step[name] for name in columns) for step in ingest["steps"]])


def show_run(status: Mapping[str, Any]) -> None:
    """Print the state of a training run by stage."""
    console.print_line(f"training {status['run']}: {process_line(status)}", style=_style(status))
    rows = [
        (
            stage["stage"],
            stage["state"],
            stage["done"],
            stage["left"],
            stage["steps_per_s"],
            "-" if stage["time_left_s"] is None else format_duration(stage["time_left_s"]),
            stage["loss"],
            "-" if stage["checkpoint"] is None else f"{stage['checkpoint']}, {ago(stage['checkpoint_at'])}",
            by_kind(stage["events"]),
        )
        for stage in status["stages"]
    ]
    columns = ("stage", "state", "steps done", "left", "steps/s", "time left", "loss", "checkpoint", "events")
    console.table("", columns, rows)


def show_plan(status: Mapping[str, Any]) -> None:
    """Print the state of a plan, and of what its current step works on."""
    console.print_line(
        f"plan {status['plan']} in {status['folder']}: {process_line(status)}", style=_style(status)
    )
    rows = [
        (
            step["step"],
            step["state"],
            clock(step["at"]) if "at" in step else "-",
            step.get("seconds"),
            step.get("done"),
            step.get("left"),
            step.get("rate"),
            "-" if step.get("time_left_s") is None else format_duration(step["time_left_s"]),
            step.get("message") or step.get("doing", ""),
        )
        for step in status["steps"]
    ]
    columns = ("step", "state", "since", "seconds", "done", "left", "per s", "time left", "")
    console.table("", columns, rows)
    console.print_line(f"failed steps: {by_kind(status['failures'])}")
    if status.get("corpus"):
        show_corpus(status["corpus"])
    if status.get("run"):
        show_run(status["run"])


def process_line(status: Mapping[str, Any]) -> str:
    """Alive or dead, since when, and where."""
    if "pid" not in status:
        return str(status["state"])
    place = f"process {status['pid']} on {status['host']}"
    sign = f", last sign {ago(status['last_sign'])}" if status["state"] == "alive" else ""
    return f"{status['state']} since {clock(status['since'])} ({place}{sign})"


def by_kind(counts: Mapping[str, int]) -> str:
    """Counts by kind, the most frequent first."""
    listed = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} {count:,}" for kind, count in listed) or "none"


def left_text(status: Mapping[str, Any]) -> str:
    """Time left, and when that is."""
    if status["time_left_s"] is None:
        return "time left not known"
    return f"about {format_duration(status['time_left_s'])} left, until {clock(status['ends_at'])}"


def clock(at: float) -> str:
    """Seconds since 1970 as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def ago(at: float) -> str:
    """How long ago a time was."""
    return f"{format_duration(max(0.0, time.time() - at))} ago"


def _style(status: Mapping[str, Any]) -> str | None:
    return "yellow" if status["state"] == "dead" else None
