"""`uniavgen status`: what a corpus, a training run or a plan is doing, from any shell or node."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from uniavgen.orchestration.commands.common import ConfigOption, JsonOption, PresetOption, SetOption, run_body

WATCH_S = 2.0
"""Seconds between two looks of --watch."""


def status(
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="A corpus and the ingests on it.", metavar="DIR")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="A training run and its stages.", metavar="DIR")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A plan file, or the folder of a plan.", metavar="PATH")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 s; Ctrl-C ends it.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Show what a corpus, a run or a plan is doing, from any shell.

    Everything is read from the folder: no process is asked, so it works from every node that sees it. Shows
    steps, done and left, rate, time left, failures by kind, the last checkpoint, and whether the process is
    alive or since when it is dead.

    Example: uniavgen status --run data/run --watch
    """

    def body() -> dict[str, Any]:
        from uniavgen.shards.errors import UsageError

        named = {"corpus": corpus, "run": run, "plan": plan}
        given = [(kind, path) for kind, path in named.items() if path]
        if len(given) != 1:
            raise UsageError("name one of them", where="--corpus, --run, --plan")
        if watch and json_:
            raise UsageError("give one of them", where="--watch, --json", hint="--json prints one answer")
        look, show = _reader(*given[0])
        return _watch(look, show) if watch else _once(look, show)

    run_body(body, json_)


def _reader(
    kind: str, path: Path
) -> tuple[Callable[[], dict[str, Any]], Callable[[Mapping[str, Any]], None]]:
    """What reads the status, and what prints it."""
    from uniavgen.orchestration.status import page
    from uniavgen.orchestration.status.corpus_status import corpus_status
    from uniavgen.orchestration.status.plan_status import plan_status
    from uniavgen.orchestration.status.run_status import run_status

    if kind == "corpus":
        return partial(corpus_status, path), page.show_corpus
    if kind == "run":
        return partial(run_status, path), page.show_run
    return partial(plan_status, path), page.show_plan


def _once(look: Callable[[], dict[str, Any]], show: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    document = look()
    show(document)
    return {"command": "status", **document}


def _watch(look: Callable[[], dict[str, Any]], show: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Print the status again and again until Ctrl-C."""
    from uniavgen.orchestration.output import console
    from uniavgen.shards.errors import Terminated

    try:
        while True:
            document = look()
            console.console.clear()
            console.print_line(time.strftime("%H:%M:%S"), style="dim")
            show(document)
            time.sleep(WATCH_S)
    except KeyboardInterrupt as error:
        if isinstance(error, Terminated):
            raise
        return {"command": "status"}
