"""The command line. Every command: read the configuration, do one thing, print a summary; nothing heavy is imported here.

Exit codes: 0 done; 1 the input or the environment is at fault (one clear line); 2 the command was typed wrongly.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from orchestration.command import ConfigOption, CorpusOption, JsonOption, PresetOption, RunOption, SetOption, run_command

if TYPE_CHECKING:
    from orchestration.config import Config

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


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

    run_command(work, preset, config, [f"tracking.folder={folder / 'mlflow'}", *(set_ or [])], json_)


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

    summary = run_command(work, preset, config, set_, json_)
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

    run_command(work, preset, config, set_, json_)


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

    run_command(work, preset, config, set_, json_)


@app.command()
def shard(
    corpus: CorpusOption,
    verify: Annotated[bool, typer.Option("--verify", help="Only check what stands; exit with 1 on any defect.")] = False,
    to: Annotated[str | None, typer.Option("--to", help="Then copy them to a folder or s3:// URL.", metavar="URL")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Write the kept clips as WebDataset shards."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.jobs import shard_corpus, verify_corpus_shards
        from orchestration.publishing import publish_corpus_shards
        from shards.errors import UsageError

        if to and verify:
            raise UsageError("--verify changes nothing, --to copies", where="--to, --verify", do="give one of them")
        if to:
            return publish_corpus_shards(corpus, settings, to)
        return verify_corpus_shards(corpus, settings) if verify else shard_corpus(corpus, settings)

    summary = run_command(work, preset, config, set_, json_)
    if verify and summary["defects"]:
        raise typer.Exit(1)


@app.command("cache-latents")
def cache_latents(
    corpus: CorpusOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Compute latents, mels and caption features of the shards once, for training to read."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.latents import cache_corpus_latents

        return cache_corpus_latents(corpus, settings)

    summary = run_command(work, preset, config, set_, json_)
    if summary["failed"]:
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

    run_command(work, preset, config, set_, json_)


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

    run_command(work, preset, config, set_, json_)


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="audio, joint, multitask, or all.", metavar="STAGE")],
    corpus: CorpusOption,
    run: RunOption,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although the configuration is not the one it began with.")
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Train a stage (or all three) with DeepSpeed through Ray Train."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.training import train_stages

        return train_stages(stage, corpus, run, settings, accept_changes=accept_changes)

    run_command(work, preset, config, set_, json_)


@app.command("verify-resume")
def verify_resume(
    corpus: CorpusOption,
    run: RunOption,
    stage: Annotated[str, typer.Option("--stage", help="Stage of the plan that is tried.", metavar="STAGE")] = "multitask",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps before the kill, and after it.", metavar="N")] = 5,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Prove that an interrupted run loses nothing: 2N steps straight against N + kill -9 + N, bit for bit."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.verify_resume import verify_resume

        return verify_resume(corpus, run, settings, stage=stage, steps=steps)

    if not run_command(work, preset, config, set_, json_)["equal"]:
        raise typer.Exit(1)


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

    run_command(work, preset, config, set_, json_)


@app.command()
def plan(
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Cards; default: train.workers.", metavar="N")] = None,
    gpu: Annotated[
        str, typer.Option("--gpu", help="h100-80g, h200, a100-80g, or memory GiB, bf16 TFLOP/s and GB/s as 24,165,1008.")
    ] = "h100-80g",
    mfu: Annotated[float, typer.Option("--mfu", help="Share of the peak reached: stated, or what a run measured.")] = 0.4,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Corpus whose shards tell a clip's size.", metavar="DIR")
    ] = None,
    clips: Annotated[
        int | None, typer.Option("--clips", min=1, help="Clips to store; default: the corpus's, or 1.3 M.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Memory, time and cost of training, before a GPU is rented."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.planner import plan_training

        return plan_training(settings, gpus, gpu, mfu, corpus, clips)

    run_command(work, preset, config, set_, json_)


@app.command()
def ablate(
    run: Annotated[Path, typer.Option("--run", help="Folder of the trainings, results and page.", metavar="DIR")],
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: Annotated[str, typer.Option("--preset", help="quick: the interaction rows; full: every table.")] = "quick",
) -> None:
    """The paper's ablations on a small world with a known law."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.ablation import run_ablation

        return run_ablation(run, settings)

    run_command(work, f"ablate-{preset}", config, set_, json_)


@app.command()
def export(
    run: RunOption,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.", metavar="DIR")],
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Write a trained run's weights in the original Wan layout, with a model card."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.exporting import export_run

        return export_run(run, out)

    run_command(work, preset, config, set_, json_)


@app.command()
def submit(
    command: Annotated[
        list[str], typer.Argument(help="A command of this program with its options, after `--`.", metavar="COMMAND...")
    ],
    address: Annotated[
        str, typer.Option("--address", help="Ray's dashboard; default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS.", metavar="URL")
    ] = "",
    follow: Annotated[bool, typer.Option(help="Show the job's output to its end.")] = True,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Run a command as a Ray job on a cluster: uniavgen submit -- ingest s3://bucket/raw --corpus /data/corpus."""

    def work(settings: Config) -> dict[str, Any]:
        from orchestration.submit import submit

        return submit(command, sorted(getattr(get_command(app), "commands", {})), address, follow=follow)

    run_command(work, preset, config, set_, json_)


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

    summary = run_command(work, preset, config, set_, json_)
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
    run_command(work, preset, config, [*places, *(set_ or [])], json_)


def main() -> None:
    """Entry point of the `uniavgen` command."""
    # Ray and DeepSpeed start helpers (ninja, workers) from this environment's bin
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    app()
