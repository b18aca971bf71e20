"""The command line: lists the commands and starts one of them. Only that command's module is imported.

The overview, the version and a misspelt name are answered before Typer is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uniavgen import __version__
from uniavgen.orchestration.process import exit_at_signals, prepare_environment
from uniavgen.shards.errors import nearest_name

if TYPE_CHECKING:
    import typer

COMMANDS = {
    "demo": "Run every step on a small corpus with known truth.",
    "ingest": "Measure raw videos and cut clips into a corpus.",
    "curate": "Decide which clips to keep, with a reason for each.",
    "caption": "Describe the kept clips with a vision-language model.",
    "shard": "Write the kept clips as WebDataset shards.",
    "cache-latents": "Encode the shards once, so that training skips the codecs.",
    "report": "Write the page of a corpus or of a training run.",
    "forget": "Delete a source or a person from corpus and shards, for good.",
    "export-corpus": "Write the samples in the layouts of other trainers.",
    "plan": "Estimate memory, time and cost of a training.",
    "bill": "Forecast hours, storage and price of a large data set.",
    "train": "Train a stage, or all stages, with DeepSpeed on Ray Train.",
    "verify-resume": "Prove that an interrupted training loses nothing.",
    "sample": "Generate a video with sound from a trained model.",
    "evaluate": "Score generated videos, each metric beside its controls.",
    "export": "Write a trained model as safetensors with a model card.",
    "run": "Run a plan file: every step that has something to do, in order.",
    "status": "Show what a corpus, a run or a plan is doing, from any shell.",
    "ablate": "Repeat the paper's ablations on a small synthetic data set.",
    "submit": "Run a command as a Ray job on a cluster.",
    "settings": "Print every setting with its value and meaning, as YAML.",
    "doctor": "Check what this machine can run and what is missing.",
    "ui": "Open MLflow on the runs recorded here; Ctrl-C ends it.",
}
"""Commands and their summaries, in the order of use. `a-b` is the function `a_b` in `commands/a_b.py`."""
ROOMS = {"run": "plan_runs", "status": "status", "bill": "planning", "export-corpus": "output"}
"""Folders of the commands that lie with what they use, instead of in `commands`."""

USAGE = "Usage: uniavgen COMMAND [OPTIONS]"
HELP = f"""{USAGE}

  From raw talking-head videos to a trained joint audio-video generator.

Options:
  --version   Print the version.
  -h, --help  Print this text; after a command: its arguments and options.

Commands:
""" + "".join(f"  {name:13}  {summary}\n" for name, summary in COMMANDS.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with the command's exit code; 143 after SIGTERM, 130 after Ctrl-C."""
    exit_at_signals()
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(HELP, end="")
    elif name == "--version":
        print(f"uniavgen {__version__}")
    elif name in COMMANDS:
        prepare_environment()
        typer_app(name)(words[1:], prog_name=f"uniavgen {name}")
    elif name:
        print(
            f"{USAGE}\nTry 'uniavgen --help'.\n\nError: no such command: {name}{nearest(name)}",
            file=sys.stderr,
        )
        sys.exit(2)
    else:
        print(HELP, end="", file=sys.stderr)
        sys.exit(2)


def typer_app(name: str) -> typer.Typer:
    """The Typer application of one command of `COMMANDS`."""
    import typer

    from uniavgen.orchestration.commands.common import with_local_paths

    function = name.replace("-", "_")
    room = ROOMS.get(name, "commands")
    module = importlib.import_module(f"uniavgen.orchestration.{room}.{function}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, context_settings={"help_option_names": ["-h", "--help"]})(
        with_local_paths(getattr(module, function))
    )
    return app


def nearest(name: str) -> str:
    """A question that names the command with the most similar name; "" if none is similar."""
    question = nearest_name(name, COMMANDS)
    return question and f"; {question}"
