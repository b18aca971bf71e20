"""A command out of a function of the settings: its own options, the common ones behind them, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from uniavgen.orchestration.command import CorpusOption, Fault, with_settings
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
        raise Fault(summary)
    return summary


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    made = typer.Typer(rich_markup_mode=None)
    made.command("look")(with_settings(look))
    made.command("other")(with_settings(look))
    return made


def test_it_gets_its_own_options_and_the_settings_of_all_layers(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {seed: 5}")
    words = ["look", "--corpus", "c", "--times", "3", "--config", str(tmp_path / "mine.yaml"), "--json"]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"corpus": "c", "times": 3, "seed": 5})
    done = CliRunner().invoke(app, [*words, "--set", "train.seed=7", "--preset", "laptop"])
    assert json.loads(done.stdout)["seed"] == 7
    assert CliRunner().invoke(app, ["look", "--corpus", "c"]).stdout == ""


def test_a_fault_prints_the_summary_and_exits_with_1(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["look", "--corpus", "c", "--end", "fault", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["corpus"]) == (1, "c")


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("user", 1, "error: no sound (a.mp4)\n"),
        ("usage", 2, "error: no such thing\n"),
        ("stopped", 143, "stopped after step 3\n"),
        ("system", 1, "error: No space left on device (/data/x); check path, rights and space\n"),
        (
            "bug",
            1,
            "error: unexpected ZeroDivisionError: division by zero; set UNIAVGEN_TRACE=1 for the trace\n",
        ),
    ],
)
def test_every_error_is_one_line_and_an_exit_code(app: typer.Typer, end: str, code: int, said: str) -> None:
    done = CliRunner().invoke(app, ["look", "--corpus", "c", "--end", end])
    assert (done.exit_code, done.stderr, done.stdout) == (code, said, "")
