"""The frame of commands: their own options and the common ones, summary, errors, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from uniavgen.orchestration.commands.common import CheckFailed, CorpusOption, command
from uniavgen.shards.errors import Stopped, UsageError, UserError

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config

ERRORS: dict[str, Exception] = {
    "user": UserError("no sound", where="a.mp4"),
    "usage": UsageError("no such thing"),
    "stopped": Stopped("stopped after step 3", code=143),
    "system": OSError(28, "No space left on device", "/data/x"),
    "bug": ZeroDivisionError("division by zero\nsecond line"),
}


def look(
    settings: Config,
    corpus: CorpusOption,
    times: Annotated[int, typer.Option("--times", min=1, help="How often.")] = 1,
    end: Annotated[str, typer.Option("--end", help="How it ends.")] = "",
) -> dict[str, Any]:
    """Look at a corpus."""
    if end in ERRORS:
        raise ERRORS[end]
    summary = {"corpus": str(corpus), "times": times, "seed": settings.train.seed}
    if end == "fault":
        raise CheckFailed(summary)
    return summary


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    made = typer.Typer(rich_markup_mode=None)
    made.command("look")(command(look))
    made.command("other")(command(look))
    return made


def test_body_gets_its_options_and_the_composed_settings(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {seed: 5}")
    words = ["look", "--corpus", "c", "--times", "3", "--config", str(tmp_path / "mine.yaml"), "--json"]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"corpus": "c", "times": 3, "seed": 5})
    done = CliRunner().invoke(app, [*words, "--set", "train.seed=7", "--preset", "laptop"])
    assert json.loads(done.stdout)["seed"] == 7
    assert CliRunner().invoke(app, ["look", "--corpus", "c"]).stdout == ""


def test_failed_check_prints_the_summary_and_exits_with_1(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["look", "--corpus", "c", "--end", "fault", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["corpus"]) == (1, "c")


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("user", 1, "error: no sound (a.mp4)\n"),
        ("usage", 2, "error: no such thing\n"),
        ("stopped", 143, "stopped after step 3\n"),
        ("system", 1, "error: No space left on device (/data/x); check path, permissions and disk space\n"),
        (
            "bug",
            1,
            "error: unexpected ZeroDivisionError: division by zero; "
            "set UNIAVGEN_TRACE=1 to see the traceback\n",
        ),
    ],
)
def test_every_error_is_one_line_with_an_exit_code(
    app: typer.Typer, end: str, code: int, message: str
) -> None:
    done = CliRunner().invoke(app, ["look", "--corpus", "c", "--end", end])
    assert (done.exit_code, done.stderr, done.stdout) == (code, message, "")
