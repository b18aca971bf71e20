"""Console output: progress and tables on stderr, the JSON summary on stdout."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

LOG_WIDTH = 140
"""Width in columns where stderr is no terminal."""

MAX_REASON = 200
"""Characters of another library's error message that are shown."""

# a terminal, or COLUMNS, sets its own width
_width = None if sys.stderr.isatty() or "COLUMNS" in os.environ else LOG_WIDTH
console = Console(stderr=True, highlight=False, soft_wrap=True, width=_width)


Observer = Callable[[str, float, float | None], None]
"""Gets label, done and total of a progress line."""
_observers: list[Observer] = []


class ProgressBar:
    """A progress line. On a terminal it is redrawn; in a log it is printed once, at its end."""

    def __init__(self, view: Progress, task: TaskID) -> None:
        self._view, self._task = view, task

    def update(self, done: int, total: int | None = None, *, label: str | None = None) -> None:
        """Set the count; `None` keeps the total or the label."""
        self._view.update(self._task, completed=done, total=total, description=label)
        self._tell()

    def advance(self) -> None:
        self._view.advance(self._task)
        self._tell()

    def _tell(self) -> None:
        task = self._view.tasks[self._task]
        for observer in _observers:
            observer(task.description, task.completed, task.total)

    def print_warning(self, text: str) -> None:
        """Print a line above the progress line."""
        self._view.console.print(text, style="yellow", markup=False)


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Call `observer` at every change of a progress line while the block runs."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[ProgressBar]:
    """Show one progress line while the block runs."""
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console) as view:
        yield ProgressBar(view, view.add_task(label, total=total))


@contextmanager
def timed_section(label: str, seconds: dict[str, float]) -> Iterator[None]:
    """Print a heading, run the block, and store its duration in `seconds[label]`."""
    print_heading(label)
    started = time.monotonic()
    yield
    seconds[label] = round(time.monotonic() - started, 1)


def print_heading(text: str) -> None:
    """Print a line across the console, above what a step prints."""
    console.rule(f"[bold]{escape(text)}", align="left")


def print_line(text: str, style: str | None = None) -> None:
    """Print a line as it is: brackets are not markup."""
    console.print(text, style=style, markup=False)


def print_warning(text: str) -> None:
    """Print a warning in one line."""
    print_line(f"warning: {text}", style="yellow")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a small table: numbers are right-aligned, None is a dash, brackets in texts are not markup."""
    view = Table(title=escape(title), title_justify="left", title_style="bold")
    numeric = [
        all(isinstance(row[i], int | float) or row[i] is None for row in rows) for i in range(len(columns))
    ]
    for name, right in zip(columns, numeric, strict=True):
        view.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        view.add_row(*(escape(format_value(value)) for value in row))
    console.print(view)


def format_value(value: object) -> str:
    """A value for people: three significant digits, thousands separated, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened; the name of its type where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_REASON]


@contextmanager
def summary_on_stdout(wanted: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield the function that prints a command's summary on stdout, as one JSON document, if it is `wanted`.

    Then whatever else is written to stdout goes to stderr: by libraries, their C code and child processes,
    until the process ends. Where a notebook or a test has replaced `sys.stdout`, until the block ends.
    """
    if not wanted or sys.stdout is None:  # None: the shell closed it
        yield lambda document: None
        return
    stdout, replaced = sys.stdout, sys.stdout is not sys.__stdout__
    stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield partial(_print_json, stdout if replaced else os.fdopen(kept, "w", closefd=False))
    finally:
        if replaced:
            os.dup2(kept, 1)
        os.close(kept)


def _print_json(out: TextIO, document: dict[str, Any]) -> None:
    print(to_json(document), file=out, flush=True)


def to_json(document: dict[str, Any]) -> str:
    """A summary as strict JSON in one line: NaN and infinities become null, other objects their text."""
    return json.dumps(_plain(document), sort_keys=True, allow_nan=False)


def _plain(value: Any) -> Any:
    """The value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not getattr(value, "shape", ()):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
