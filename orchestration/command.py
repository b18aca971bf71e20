"""What every command has: its common options, and how its errors become one line and an exit code.

Exit codes: 0 done; 1 the input or the environment is at fault (one clear line); 2 the command was typed wrongly; 128 and a
signal's number where that ended it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orchestration.config import Config

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="YAML file with settings, over the preset.", metavar="FILE")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="One setting, over preset and file.", metavar="A.B=C")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON summary on stdout; progress stays on stderr.")]
PresetOption = Annotated[str, typer.Option("--preset", help="Settings to start from: tiny, laptop or paper.", metavar="NAME")]
CorpusOption = Annotated[Path, typer.Option("--corpus", help="The corpus folder.", metavar="DIR")]
RunOption = Annotated[Path, typer.Option("--run", help="The training run's folder.", metavar="DIR")]


def run_command(
    work: Callable[[Config], dict[str, Any]], preset: str, file: Path | None, assignments: list[str] | None, json_: bool
) -> dict[str, Any]:
    """Run one command's work between reading the settings and printing the summary; every error becomes one line."""
    from shards.errors import Stopped, UsageError, UserError

    try:
        from orchestration.config import load_config

        summary = work(load_config(preset, file, assignments or []))
    except UsageError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except Stopped as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.code) from None
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; what was committed stays, run the same command again to go on", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        typer.echo(f"error: {error.strerror or error} ({error.filename or 'system'}); check path, rights and space", err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        if os.environ.get("UNIAVGEN_TRACE"):
            raise
        first = (str(error).strip().splitlines() or ["no message"])[0][:300]
        typer.echo(f"error: unexpected {type(error).__name__}: {first}; set UNIAVGEN_TRACE=1 for the trace", err=True)
        raise typer.Exit(1) from None
    if json_:
        from orchestration.console import emit_json

        emit_json(summary)
    return summary
