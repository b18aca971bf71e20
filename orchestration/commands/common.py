"""The frame of every command: common options, settings, errors as one line, exit code, JSON summary.

Exit codes: 0 done; 1 the input or the environment is at fault; 2 the command was typed wrongly; 128 + N ended
by signal N.
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

INTERRUPTED = "stopped; committed work is kept: run the same command again to continue"
"""Printed after Ctrl-C and SIGTERM."""

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings; overrides the preset.", metavar="FILE")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="One setting; overrides preset and file.", metavar="A.B=C")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON summary on stdout; progress goes to stderr.")
]
PresetOption = Annotated[
    str, typer.Option("--preset", help="Settings to start from: tiny, laptop or paper.", metavar="NAME")
]
CorpusOption = Annotated[Path, typer.Option("--corpus", help="Corpus folder.", metavar="DIR")]
RunOption = Annotated[Path, typer.Option("--run", help="Folder of the training run.", metavar="DIR")]

COMMON_OPTIONS = {
    "config": (ConfigOption, None),
    "set_": (SetOption, None),
    "json_": (JsonOption, False),
    "preset": (PresetOption, "tiny"),
}
"""Options of every command with their defaults."""


class CheckFailed(Exception):
    """The command ran to its end and found a problem: its summary is printed, the exit code is 1."""

    def __init__(self, summary: dict[str, Any]) -> None:
        super().__init__(summary)
        self.summary = summary


def command(body: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Decorator: a Typer command from `body(settings, **options)`, which returns the summary.

    The common options are added behind the body's own. A body that needs the value of a common option names
    it as a parameter.
    """
    # the configuration is imported when a command runs, so its type has no name here
    _, *parameters = inspect.signature(body, locals={"Config": Any}, eval_str=True).parameters.values()

    def run(**values: Any) -> None:
        config, set_, json_, preset = (values[name] for name in COMMON_OPTIONS)
        options = {parameter.name: values[parameter.name] for parameter in parameters}
        run_command(lambda settings: body(settings, **options), preset, config, set_, json_)

    options = {parameter.name: (parameter.annotation, parameter.default) for parameter in parameters}
    run.__name__, run.__doc__ = body.__name__, body.__doc__
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, (kind, default) in (options | COMMON_OPTIONS).items()
        ]
    )
    return run


def run_command(
    body: Callable[[Config], dict[str, Any]],
    preset: str,
    file: Path | None,
    assignments: list[str] | None,
    json_: bool,
) -> None:
    """Compose the settings, call `body`, print the summary. Every error becomes one line and an exit code."""

    def with_settings() -> dict[str, Any]:
        from uniavgen.orchestration.config import load_config

        return body(load_config(preset, file, assignments or []))

    run_body(with_settings, json_)


def run_body(body: Callable[[], dict[str, Any]], json_: bool) -> None:
    """Call `body` and print the summary. Every error becomes one line and an exit code."""
    from uniavgen.orchestration.process import raise_at_signals
    from uniavgen.shards.errors import Stopped, Terminated, UsageError, UserError

    failed = False
    try:
        raise_at_signals()
        summary = body()
    except CheckFailed as error:
        summary, failed = error.summary, True
    except UsageError as error:
        raise _exit(f"error: {error}", 2) from None
    except Stopped as error:
        raise _exit(str(error), error.code) from None
    except UserError as error:
        raise _exit(f"error: {error}", 1) from None
    except KeyboardInterrupt as error:
        code = error.code if isinstance(error, Terminated) else 130
        raise _exit(INTERRUPTED, code) from None
    except OSError as error:
        place = error.filename or "system"
        text = f"error: {error.strerror or error} ({place}); check path, permissions and disk space"
        raise _exit(text, 1) from None
    except Exception as error:
        if os.environ.get("UNIAVGEN_TRACE"):
            raise
        first = (str(error).strip().splitlines() or ["no message"])[0][:300]
        text = f"error: unexpected {type(error).__name__}: {first}; set UNIAVGEN_TRACE=1 to see the traceback"
        raise _exit(text, 1) from None
    if json_:
        from uniavgen.orchestration.output.console import emit_json

        emit_json(summary)
    if failed:
        raise typer.Exit(1)


def _exit(text: str, code: int) -> typer.Exit:
    """Print a line on stderr; the exception that ends the program with `code`."""
    typer.echo(text, err=True)
    return typer.Exit(code)
