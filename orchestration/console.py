"""What people see: progress and summaries on stderr, one JSON document on stdout when asked for."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

LOG_WIDTH = 140
"""Columns of what goes into a log, where nobody's window sets them."""

# a terminal, or COLUMNS, says its own width
_width = None if sys.stderr.isatty() or "COLUMNS" in os.environ else LOG_WIDTH
console = Console(stderr=True, highlight=False, soft_wrap=True, width=_width)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Progress]:
    """A progress display with one task, numbered 0; on a terminal it moves, in a log it prints once."""
    counts = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
    ]
    clocks = [TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*counts, *clocks, console=console) as bar:
        bar.add_task(label, total=total)
        yield bar


@contextmanager
def step(label: str, seconds: dict[str, float]) -> Iterator[None]:
    """Say that a step of a longer road begins, and note how long it took under its label."""
    console.rule(f"[bold]{escape(label)}", align="left")
    started = time.monotonic()
    yield
    seconds[label] = round(time.monotonic() - started, 1)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a small table; numbers are right-aligned, None is shown as a dash. Brackets in texts are no markup."""
    view = Table(title=escape(title), title_justify="left", title_style="bold")
    numeric = [
        all(isinstance(row[i], int | float) or row[i] is None for row in rows) for i in range(len(columns))
    ]
    for name, right in zip(columns, numeric, strict=True):
        view.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        view.add_row(*(escape(shown(value)) for value in row))
    console.print(view)


def shown(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def emit_json(document: dict[str, Any]) -> None:
    """The machine-readable summary: one JSON object on stdout."""
    print(json.dumps(document, default=str, sort_keys=True))
