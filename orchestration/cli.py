"""The command line: every command under its name, in the order in which they are used. Nothing heavy is imported here.

Exit codes: 0 done; 1 the input or the environment is at fault (one clear line); 2 the command was typed wrongly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.command import (
    ConfigOption,
    Fault,
    JsonOption,
    PresetOption,
    SetOption,
    run_command,
    with_settings,
)
from uniavgen.orchestration.commands import corpus_commands, training_commands

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback()
def uniavgen() -> None:
    """From raw talking-head videos to a trained joint audio-video generator."""


def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where everything is made.", metavar="DIR")] = Path(
        "demo-output"
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """The whole road on a small real corpus, then where to look."""

    def work(settings: Config) -> dict[str, Any]:
        from uniavgen.orchestration.demo.run import run_demo

        return run_demo(folder, settings)

    run_command(work, preset, config, [f"tracking.folder={folder / 'mlflow'}", *(set_ or [])], json_)


def submit(
    settings: Config,
    command: Annotated[
        list[str],
        typer.Argument(help="A command of this program with its options, after `--`.", metavar="COMMAND..."),
    ],
    address: Annotated[
        str,
        typer.Option(
            "--address",
            help="Ray's dashboard; default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS.",
            metavar="URL",
        ),
    ] = "",
    follow: Annotated[bool, typer.Option(help="Show the job's output to its end.")] = True,
) -> dict[str, Any]:
    """Run a command as a Ray job on a cluster.

    For example: uniavgen submit -- ingest s3://bucket/raw --corpus /data/corpus
    """
    from uniavgen.orchestration.commands.submit import submit

    return submit(command, sorted(COMMANDS), address, follow=follow)


def settings(
    settings: Config,
    json_: bool,
    part: Annotated[
        str, typer.Argument(help="Only what is below it, as train.deepspeed; default: all.", metavar="PART")
    ] = "",
) -> dict[str, Any]:
    """Every setting, its value and its meaning, in a file for --config."""
    from uniavgen.orchestration.commands.settings import commented, values

    text = commented(settings, part)
    if not json_:
        typer.echo(text, nl=False)
    return {part or "settings": values(settings, part)}


def doctor(settings: Config) -> dict[str, Any]:
    """What this machine can run, what is missing, how to get it."""
    from uniavgen.orchestration.commands.doctor import examine

    summary = examine(settings)
    if summary["missing"]:
        raise Fault(summary)
    return summary


def ui(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Folder of mlflow.db; default: tracking.folder.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1.")] = 5000,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Open MLflow on the runs recorded here; Ctrl-C ends it."""

    def work(settings: Config) -> dict[str, Any]:
        from uniavgen.orchestration.commands.ui import serve

        return serve(settings.tracking, port)

    places = [f"tracking.folder={folder}"] if folder else []
    run_command(work, preset, config, [*places, *(set_ or [])], json_)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "ingest": with_settings(corpus_commands.ingest),
    "curate": with_settings(corpus_commands.curate),
    "caption": with_settings(corpus_commands.caption),
    "shard": with_settings(corpus_commands.shard),
    "cache-latents": with_settings(corpus_commands.cache_latents),
    "report": with_settings(corpus_commands.report),
    "forget": with_settings(corpus_commands.forget),
    "plan": with_settings(training_commands.plan),
    "train": with_settings(training_commands.train),
    "verify-resume": with_settings(training_commands.verify_resume),
    "sample": with_settings(training_commands.sample),
    "export": with_settings(training_commands.export),
    "ablate": training_commands.ablate,
    "submit": with_settings(submit),
    "settings": with_settings(settings),
    "doctor": with_settings(doctor),
    "ui": ui,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def main() -> None:
    """Entry point of the `uniavgen` command."""
    # Ray and DeepSpeed start helpers (ninja, workers) from this environment's bin
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # no child takes code from the current folder
    app()
