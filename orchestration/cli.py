"""The command line. Every command: read the configuration, do one thing, print a summary; nothing heavy is imported here.

Exit codes: 0 done; 1 the input or the environment is at fault (one clear line); 2 the command was typed wrongly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orchestration.config import Config

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="YAML file with settings, over the preset.", metavar="FILE")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="One setting, over preset and file.", metavar="A.B=C")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON summary on stdout; progress stays on stderr.")]
PresetOption = Annotated[str, typer.Option("--preset", help="Settings to start from: tiny, laptop or paper.", metavar="NAME")]
CorpusOption = Annotated[Path, typer.Option("--corpus", help="The corpus folder.", metavar="DIR")]
RunOption = Annotated[Path, typer.Option("--run", help="The training run's folder.", metavar="DIR")]


@app.callback()
def uniavgen() -> None:
    """From raw talking-head videos to a trained joint audio-video generator."""


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where everything is made.", metavar="DIR")] = Path("demo-output"),
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """The whole road on a small real corpus, then where to look."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.demo.run import run_demo

        return run_demo(folder, settings)

    _command(work, preset, config, [f"tracking.folder={folder / 'mlflow'}", *(set_ or [])], json_)


@app.command()
def ingest(
    sources: Annotated[
        list[str], typer.Argument(help="Videos, folders, globs, URLs, or .txt files that list them.", metavar="SRC...")
    ],
    corpus: CorpusOption,
    retry: Annotated[bool, typer.Option("--retry", help="Also try sources that failed before.")] = False,
    stage: Annotated[
        str, typer.Option("--stage", help="With --retry: only those that failed in this step.", metavar="STEP")
    ] = "",
    forecast: Annotated[
        int | None, typer.Option("--forecast", min=1, help="Measure only N sources and predict the rest.", metavar="N")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if any source failed.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Measure raw videos into a corpus of clips."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.jobs import forecast_corpus, ingest_corpus
        from shards.errors import UsageError

        if stage and not retry:
            raise UsageError("--stage says which failures to retry", where="--stage", do="give --retry too")
        if forecast is None:
            return ingest_corpus(sources, corpus, settings, retry=retry, stage=stage)
        if retry:
            raise UsageError("a forecast is for what was not tried yet", where="--forecast", do="leave out --retry")
        return forecast_corpus(sources, corpus, settings, forecast)

    summary = _command(work, preset, config, set_, json_)
    if strict and summary["failures"]:
        raise typer.Exit(1)


@app.command()
def curate(
    corpus: CorpusOption,
    policy: Annotated[str | None, typer.Option("--policy", help="A policy's name or YAML file.", metavar="FILE|NAME")] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option("--what-if", help="Only answer what another threshold would keep.", metavar="RULE[.min|.max]=VALUE"),
    ] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", help="Only tell how each rule judges one clip.", metavar="CLIP")
    ] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Only tell how the yield follows each threshold.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Decide which clips to keep, each with a reason; or answer a question about the policy and write nothing."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.jobs import curate_corpus
        from orchestration.policy_questions import ask_sensitivity, ask_what_if, explain_clip
        from shards.errors import UsageError

        if sum((bool(what_if), explain is not None, sensitivity)) > 1:
            raise UsageError("ask one question at a time", where="--what-if, --explain, --sensitivity")
        if what_if:
            return ask_what_if(corpus, settings, policy, what_if)
        if explain is not None:
            return explain_clip(corpus, settings, policy, explain)
        if sensitivity:
            return ask_sensitivity(corpus, settings, policy)
        return curate_corpus(corpus, settings, policy)

    _command(work, preset, config, set_, json_)


@app.command()
def caption(
    corpus: CorpusOption,
    retry: Annotated[bool, typer.Option("--retry", help="Also ask again where the answer was bad.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Describe the kept clips by a vision model."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.captioning import caption_corpus

        return caption_corpus(corpus, settings, retry=retry)

    _command(work, preset, config, set_, json_)


@app.command()
def shard(
    corpus: CorpusOption,
    verify: Annotated[bool, typer.Option("--verify", help="Only check what stands; exit with 1 on any defect.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Write the kept clips as WebDataset shards."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.jobs import shard_corpus, verify_corpus_shards

        return verify_corpus_shards(corpus, settings) if verify else shard_corpus(corpus, settings)

    summary = _command(work, preset, config, set_, json_)
    if verify and summary["defects"]:
        raise typer.Exit(1)


@app.command()
def report(
    corpus: CorpusOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Make the corpus's page: funnel, signals, playable clips."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.jobs import report_corpus

        return report_corpus(corpus, settings)

    _command(work, preset, config, set_, json_)


@app.command()
def forget(
    corpus: CorpusOption,
    source: Annotated[str | None, typer.Argument(help="A source: its id, path or file name.", metavar="[SOURCE]")] = None,
    speaker: Annotated[
        str | None, typer.Option("--speaker", help="A speaker; who is surely the same person goes too.", metavar="ID")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Remove a source or a person from tables, media and shards, for good."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.forgetting import forget_from_corpus

        return forget_from_corpus(corpus, settings, source, speaker)

    _command(work, preset, config, set_, json_)


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="audio, joint, multitask, or all.", metavar="STAGE")],
    corpus: CorpusOption,
    run: RunOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Train a stage (or all three) with DeepSpeed through Ray Train."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.training import train_stages

        return train_stages(stage, corpus, run, settings)

    _command(work, preset, config, set_, json_)


@app.command()
def sample(
    run: RunOption,
    corpus: CorpusOption,
    task: Annotated[str, typer.Option("--task", help="joint, reference, continuation, dubbing or audio-driven.")] = "joint",
    clip: Annotated[
        str | None, typer.Option("--clip", help="Clip that gives the conditions; default: the first of val.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="Reference picture instead of the clip's.", metavar="FILE")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="Words to be spoken instead of the clip's.")] = None,
    caption: Annotated[str | None, typer.Option("--caption", help="Video caption instead of the clip's.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The .mp4 to write; default: in the run folder.", metavar="FILE")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.")] = 0,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Generate a video with sound from a trained run."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.training import sample_movie

        return sample_movie(
            run, corpus, settings, task=task, clip=clip, image=image, text=text, caption=caption, out=out, seed=seed
        )

    _command(work, preset, config, set_, json_)


@app.command()
def doctor(
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """What this machine can run, what is missing, how to get it."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.doctor import examine

        return examine(settings)

    summary = _command(work, preset, config, set_, json_)
    if summary["missing"]:
        raise typer.Exit(1)


@app.command()
def ui(
    folder: Annotated[Path | None, typer.Option("--folder", help="Folder of mlflow.db; default: tracking.folder.")] = None,
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1.")] = 5000,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Open MLflow on the runs recorded here; Ctrl-C ends it."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.ui import serve

        return serve(settings.tracking, port)

    places = [f"tracking.folder={folder}"] if folder else []
    _command(work, preset, config, [*places, *(set_ or [])], json_)


def _command(
    work: Callable[[Config], dict[str, Any]], preset: str, file: Path | None, assignments: list[str] | None, json_: bool
) -> dict[str, Any]:
    """Run one command's work between reading the settings and printing the summary; every error becomes one line."""
    from shards.errors import UsageError, UserError

    try:
        from orchestration.config import load_config

        summary = work(load_config(preset, file, assignments or []))
    except UsageError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
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


def main() -> None:
    """Entry point of the `uniavgen` command."""
    # Ray and DeepSpeed start helpers (ninja, workers) from this environment's bin
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    app()
