"""The frame of every command: common options, settings, errors as one line, exit code, JSON summary.

Exit codes: 0 done; 1 the input or the environment is at fault; 2 the command was typed wrongly; 128 + N ended
by signal N.
"""

from __future__ import annotations

import functools
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
    str, typer.Option("--preset", help="Settings to start from: tiny, talk, laptop or paper.", metavar="NAME")
]
CorpusOption = Annotated[Path, typer.Option("--corpus", help="Corpus folder.", metavar="DIR")]
NameOption = Annotated[
    str, typer.Option("--name", help="Name in MLflow; default: kind and folder.", metavar="NAME")
]
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


def with_local_paths(function: Callable[..., None]) -> Callable[..., None]:
    """The function of a command, whose path options take file:// URIs and refuse other URLs in one line."""

    @functools.wraps(function)
    def run(**values: Any) -> None:
        from uniavgen.shards.errors import UsageError
        from uniavgen.shards.uris import local_folder

        try:
            checked = {
                name: local_folder(value, f"--{name.strip('_')}") if isinstance(value, Path) else value
                for name, value in values.items()
            }
        except UsageError as error:
            refusal = error
        else:
            function(**checked)
            return

        def refuse() -> dict[str, Any]:
            raise refusal

        run_body(refuse, values["json_"])

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
    """Call `body` and print the summary. Every error becomes one line and an exit code.

    With `json_` stdout gets exactly one JSON document: the summary, or `error` and `exit_code`.
    """
    from uniavgen.orchestration.output.console import summary_on_stdout
    from uniavgen.orchestration.process import raise_at_signals

    with summary_on_stdout(json_) as print_summary:
        try:
            raise_at_signals()
            summary, code = body(), 0
        except CheckFailed as error:
            summary, code = error.summary, 1
        except (Exception, KeyboardInterrupt) as error:
            if _is_unexpected(error) and os.environ.get("UNIAVGEN_TRACE"):
                raise
            text, code = describe_error(error)
            typer.echo(text, err=True)
            summary = {"error": text.removeprefix("error: "), "exit_code": code}
        print_summary(summary)
    if code:
        raise typer.Exit(code)


def describe_error(error: BaseException) -> tuple[str, int]:
    """The line that a user reads, and the exit code."""
    from uniavgen.shards.errors import Stopped, Terminated, UsageError, UserError

    if isinstance(error, Stopped):
        return str(error), error.code
    if isinstance(error, UserError):
        return f"error: {error}", 2 if isinstance(error, UsageError) else 1
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, error.code if isinstance(error, Terminated) else 130
    if isinstance(error, OSError):
        place = error.filename or "system"
        return f"error: {error.strerror or error} ({place}); check path, permissions and disk space", 1
    first = (str(error).strip().splitlines() or ["no message"])[0][:300]
    hint = "set UNIAVGEN_TRACE=1 to see the traceback"
    return f"error: unexpected {type(error).__name__}: {first}; {hint}", 1


def _is_unexpected(error: BaseException) -> bool:
    from uniavgen.shards.errors import UserError

    return not isinstance(error, UserError | OSError | KeyboardInterrupt)
