"""`uniavgen run`: run a plan file, or say what would run and why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from uniavgen.orchestration.commands.common import ConfigOption, JsonOption, SetOption, run_body


def run(
    plan: Annotated[Path, typer.Argument(help="The plan file.", metavar="PLAN.yaml")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and why; write nothing.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this step; may be repeated.", metavar="STEP")
    ] = None,
    start: Annotated[str, typer.Option("--from", help="Begin with this step.", metavar="STEP")] = "",
    until: Annotated[str, typer.Option("--until", help="End after this step.", metavar="STEP")] = "",
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Settings to start from; default: that of the plan.", metavar="NAME"),
    ] = None,
) -> None:
    """Run a plan file: every step that has something to do, in order.

    A step whose inputs, settings and code did not change is skipped. The same command continues a plan that
    was killed. Each run stores its resolved plan in FOLDER/plan/runs, which is a plan file itself.

    Example: uniavgen run talks.yaml --dry-run

    Example: uniavgen run talks.yaml --from shard --until train
    """

    def body() -> dict[str, Any]:
        from uniavgen.orchestration.plan_runs import runner
        from uniavgen.orchestration.plan_runs.plan_file import plan_settings, read_plan
        from uniavgen.orchestration.plan_runs.steps import Job

        content = read_plan(plan)
        settings = plan_settings(content, plan, preset, config, set_ or [])
        if preset:
            content.preset = preset
        job = Job(content, settings)
        chosen: dict[str, Any] = {"only": only or (), "start": start, "until": until}
        if not dry_run:
            return runner.run_plan(job, **chosen)
        steps = [dataclasses.asdict(decision) for decision in runner.dry_run(job, **chosen)]
        return {"command": "run --dry-run", "plan": content.name, "steps": steps}

    run_body(body, json_)
