"""What every command has: the common options, and how its errors become one line and an exit code.

Goes in: a function of the settings and of the command's own options. Comes out: the command. Exit codes: 0 done; 1 the input
or the environment is at fault (one clear line); 2 the command was typed wrongly; 128 and a signal's number where that ended
it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="YAML file with settings, over the preset.", metavar="FILE")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, over preset and file.", metavar="A.B=C")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON summary on stdout; progress stays on stderr.")
]
PresetOption = Annotated[
    str, typer.Option("--preset", help="Settings to start from: tiny, laptop or paper.", metavar="NAME")
]
CorpusOption = Annotated[Path, typer.Option("--corpus", help="The corpus folder.", metavar="DIR")]
RunOption = Annotated[Path, typer.Option("--run", help="The training run's folder.", metavar="DIR")]


COMMON = {
    "config": (ConfigOption, None),
    "set_": (SetOption, None),
    "json_": (JsonOption, False),
    "preset": (PresetOption, "tiny"),
}
"""The options of every command with their defaults."""


class Fault(Exception):
    """The command did its work and found something at fault: its summary is printed, the exit code is 1."""

    def __init__(self, summary: dict[str, Any]) -> None:
        super().__init__(summary)
        self.summary = summary


def with_settings(work: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """A command out of `work(settings, **own options)`, which gives the summary: the common options stand behind its own.

    Work that needs a common option's value, too, names it among its own parameters.
    """
    # the configuration is imported when a command runs, so its type has no name here
    _, *own = inspect.signature(work, locals={"Config": Any}, eval_str=True).parameters.values()

    def command(**given: Any) -> None:
        config, set_, json_, preset = (given[name] for name in COMMON)
        asked = {parameter.name: given[parameter.name] for parameter in own}
        run_command(lambda settings: work(settings, **asked), preset, config, set_, json_)

    named = {parameter.name: (parameter.annotation, parameter.default) for parameter in own} | COMMON
    command.__name__, command.__doc__ = work.__name__, work.__doc__
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, (kind, default) in named.items()
        ]
    )
    return command


def run_command(
    work: Callable[[Config], dict[str, Any]],
    preset: str,
    file: Path | None,
    assignments: list[str] | None,
    json_: bool,
) -> None:
    """Run one command's work between reading the settings and printing the summary; every error becomes one line."""
    from uniavgen.shards.errors import Stopped, UsageError, UserError

    faulty = False
    try:
        from uniavgen.orchestration.config import load_config

        summary = work(load_config(preset, file, assignments or []))
    except Fault as fault:
        summary, faulty = fault.summary, True
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
        typer.echo(
            f"error: {error.strerror or error} ({error.filename or 'system'}); check path, rights and space",
            err=True,
        )
        raise typer.Exit(1) from None
    except Exception as error:
        if os.environ.get("UNIAVGEN_TRACE"):
            raise
        first = (str(error).strip().splitlines() or ["no message"])[0][:300]
        typer.echo(
            f"error: unexpected {type(error).__name__}: {first}; set UNIAVGEN_TRACE=1 for the trace", err=True
        )
        raise typer.Exit(1) from None
    if json_:
        from uniavgen.orchestration.console import emit_json

        emit_json(summary)
    if faulty:
        raise typer.Exit(1)
