"""`uniavgen evaluate`: score generated videos with open metrics, each beside its controls."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.evaluation.controls import CodecPass
    from uniavgen.orchestration.evaluation.results import Result
    from uniavgen.orchestration.evaluation.summary import MetricScore
    from uniavgen.orchestration.evaluation.videos import Item
    from uniavgen.shards.corpus.tables import Corpus

DEFAULT_SLICES = "task,language,speaker,pitch_hz,face_yaw_deg,length_s,policy"
PAGE_NAME, SUMMARY_NAME, TABLE_NAME = "index.html", "scores.json", "results.parquet"


@command
def evaluate(
    settings: Config,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Run whose generated videos are scored.", metavar="DIR"),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option("--videos", help="Folder of generated videos, or a test set.", metavar="DIR"),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", help="Corpus whose kept clips are the real ones.", metavar="DIR"),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option("--real", help="Folder of real videos, instead of a corpus.", metavar="DIR"),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option("--protocol", help="paper, verse-bench, vggsound, grid or emtd.", metavar="NAME"),
    ] = "paper",
    by: Annotated[
        str, typer.Option("--by", help="Conditions that scores are sliced by.", metavar="A,B")
    ] = DEFAULT_SLICES,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for results; default: `evaluation`.", metavar="DIR"),
    ] = None,
) -> dict[str, Any]:
    """Score generated videos, each metric beside its controls.

    Real clips, the same through the codec, disturbed and swapped ones show what a score means. A metric that
    does not order them is not reported. Results are kept: a second run measures what lacks.

    Example: uniavgen evaluate --run data/run --corpus data/corpus
    Example: uniavgen evaluate --videos generated --real real_talks --protocol grid
    """
    from uniavgen.shards.corpus.tables import Corpus

    known = Corpus.open(corpus) if corpus else None
    items = _videos_of(run, videos, known, protocol)
    controls = _real_videos(items, known, real, protocol, settings.evaluate.controls)
    folder = out or (run or videos or Path()) / "evaluation"
    return evaluate_videos(
        items, controls, settings, folder, run=run, corpus=known, protocol=protocol, by=by.split(",")
    )


def evaluate_videos(
    items: Sequence[Item],
    controls: Sequence[Item],
    settings: Config,
    folder: Path,
    *,
    run: Path | None = None,
    corpus: Corpus | None = None,
    protocol: str = "paper",
    by: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure videos and controls, write table, scores and page into `folder`, and record them in MLflow."""
    from rich.markup import escape

    from uniavgen.orchestration.evaluation.evaluator import Evaluator, build_meters
    from uniavgen.orchestration.evaluation.features import feature_scores, read_features
    from uniavgen.orchestration.evaluation.results import ResultStore
    from uniavgen.orchestration.evaluation.summary import metric_scores
    from uniavgen.orchestration.output import console
    from uniavgen.shards.atomic_files import locked

    meters, lacking = build_meters(settings.ingest, settings.evaluate)
    features = settings.evaluate.weights.features
    files = read_features(Path(features)) if features else {}
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", "another evaluation writes here"):
        store = ResultStore(folder)
        codec = codec_pass(run, settings) if settings.evaluate.codec else None
        evaluator = Evaluator(meters, settings.ingest, settings.evaluate, store, codec)
        with contextlib.closing(evaluator):
            with console.progress("evaluate: videos", len(items)) as bar:
                results = evaluator.measure_generated(items, bar.update)
            with console.progress("evaluate: controls", len(controls)) as bar:
                results += evaluator.measure_controls(controls, bar.update)
        scores = [*metric_scores(results), *feature_scores(files)]
        fit, lacking["TC-face"] = _face_voice(results, controls, corpus)
        scores += [fit] if fit else []
        summary = summarise(results, scores, items, len(controls), lacking, settings, protocol, by)
        page = _write(folder, summary, results, items)
    _print(summary)
    console.console.print(f"evaluation: open [bold]{escape(str(page))}[/] in a browser")
    if run is not None:
        _record(run, folder, summary, settings)
    return {"command": "evaluate", "page": str(page), "table": str(folder / TABLE_NAME), **summary}


def summarise(
    results: Sequence[Result],
    scores: Sequence[MetricScore],
    items: Sequence[Item],
    real_clips: int,
    lacking: dict[str, str],
    settings: Config,
    protocol: str,
    by: Sequence[str],
) -> dict[str, Any]:
    """Scores, slices, what is not measured and why, and errors."""
    from uniavgen.orchestration.evaluation.catalog import NOT_MEASURED, comparison_note
    from uniavgen.orchestration.evaluation.summary import slices

    reported = [score.metric for score in scores if score.reported]
    errors = [
        {"video": result.name, "level": result.level, "meter": result.meter, "error": result.error}
        for result in results
        if result.error
    ]
    return {
        "protocol": protocol,
        "videos": len(items),
        "real_clips": real_clips,
        "scores": [score.as_dict() for score in scores],
        "comparison": comparison_note(protocol, reported),
        "not_measured": {name: why for name, why in {**NOT_MEASURED, **lacking}.items() if why},
        "slices": slices(results, items, by, reported, settings.evaluate.bands),
        "errors": errors,
    }


def _videos_of(run: Path | None, videos: Path | None, corpus: Corpus | None, protocol: str) -> list[Item]:
    from uniavgen.orchestration.evaluation.protocols import PROTOCOLS
    from uniavgen.orchestration.evaluation.sources import run_items
    from uniavgen.shards.errors import UsageError, choice_hint

    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}", hint=choice_hint(protocol, PROTOCOLS))
    if (run is None) == (videos is None) and videos is None:
        raise UsageError("nothing to evaluate", hint="give --run DIR or --videos DIR")
    if videos is not None:
        return PROTOCOLS[protocol].read(videos)
    assert run is not None
    if corpus is None:
        raise UsageError("the videos of a run need its corpus", hint="give --corpus DIR, or --videos DIR")
    return run_items(run, corpus)


def _real_videos(
    items: Sequence[Item], corpus: Corpus | None, real: Path | None, protocol: str, count: int
) -> list[Item]:
    """Real clips for the controls: a folder, else the corpus, else the `truth` of the videos."""
    from uniavgen.orchestration.evaluation.protocols import PROTOCOLS
    from uniavgen.orchestration.evaluation.sources import corpus_items
    from uniavgen.orchestration.evaluation.statistics import MIN_CONTROLS
    from uniavgen.orchestration.evaluation.videos import Item
    from uniavgen.shards.errors import UserError

    if real is not None:
        chosen = PROTOCOLS[protocol].read(real)[:count]
    elif corpus is not None:
        chosen = corpus_items(corpus, count)
    else:
        truths = {item.truth: item for item in items if item.truth}
        chosen = [
            Item(f"{item.name} (real)", path, "", item.text, item.voice, item.image, "", item.conditions)
            for path, item in list(truths.items())[:count]
        ]
    if len(chosen) < MIN_CONTROLS:
        raise UserError(
            f"controls need at least {MIN_CONTROLS} real clips, there are {len(chosen)}",
            hint="give --corpus DIR, --real DIR, or a column truth in videos.csv",
            kind="too-few-clips",
        )
    return chosen


def _face_voice(
    results: Sequence[Result], controls: Sequence[Item], corpus: Corpus | None
) -> tuple[MetricScore | None, str]:
    """TC-face by a scorer that is fitted to the corpus; or None and the reason."""
    from uniavgen.ingest.models.speaker_embedding import VOICE_SIZE
    from uniavgen.orchestration.evaluation.face_voice import face_voice_score, training_pairs
    from uniavgen.orchestration.evaluation.sources import kept_clips

    if corpus is None:
        return None, "it is fitted to a corpus: give --corpus DIR"
    persons = {str(item.conditions.get("speaker")) for item in controls}
    return face_voice_score(results, training_pairs(kept_clips(corpus), persons), VOICE_SIZE)


def codec_pass(run: Path | None, settings: Config) -> CodecPass | None:
    """The codecs of the run; None, and a line, if they take no whole clips."""
    from uniavgen.orchestration.evaluation.controls import CodecPass
    from uniavgen.orchestration.output import console
    from uniavgen.train.checkpoint.trained_model import trained_config
    from uniavgen.train.codec.registry import VIDEO_CODECS

    codecs = (trained_config(run)[1] if run else settings.train).data.codecs
    if VIDEO_CODECS[codecs.video].fitted:
        console.print_line(f"ceiling through the codec: not measured, codec {codecs.video} takes crops only")
        return None
    return CodecPass(codecs)


def _write(folder: Path, summary: dict[str, Any], results: Sequence[Result], items: Sequence[Item]) -> Path:
    import json

    from uniavgen.orchestration.evaluation.page import write_page
    from uniavgen.orchestration.evaluation.results import GENERATED, write_table
    from uniavgen.shards.atomic_files import replace_file

    write_table(folder / TABLE_NAME, results)
    replace_file(folder / SUMMARY_NAME, json.dumps(summary, indent=1).encode())
    rows: dict[str, dict[str, Any]] = {
        item.name: {"name": item.name, "video": item.video, "scores": {}, "transcript": ""} for item in items
    }
    for result in results:
        if result.level == GENERATED:
            row = rows[result.name]
            row["scores"] |= {metric: value for metric, (value, _) in result.values.items()}
            row["transcript"] = result.notes.get("transcript", row["transcript"])
    return write_page(folder / PAGE_NAME, summary, list(rows.values()))


def _print(summary: dict[str, Any]) -> None:
    from uniavgen.orchestration.evaluation.page import format_number
    from uniavgen.orchestration.output import console

    for score in summary["scores"]:
        if not score["reported"]:
            console.console.print(f"{score['metric']:16} not reported: {score['why_not']}", markup=False)
            continue
        own, controls = score["score"], score["controls"]
        means = ", ".join(f"{name} {format_number(mean)}" for name, mean in controls.items())
        interval = f"[{format_number(own['low'])}, {format_number(own['high'])}]"
        line = f"{score['metric']:16} {format_number(own['value'])} {interval} n={own['count']}; {means}"
        console.console.print(line, markup=False, highlight=False)
    if summary["errors"]:
        first = summary["errors"][0]
        console.print_warning(
            f"{len(summary['errors'])} measurements failed, first {first['video']}: {first['error']}"
        )
    console.console.print(summary["comparison"], markup=False)


def _record(run_dir: Path, folder: Path, summary: dict[str, Any], settings: Config) -> None:
    """Log the reported scores on the training's run, with the page; a warning if MLflow does not answer."""
    from uniavgen.orchestration.tracking.mlflow_runs import fail_fast, open_run, warn_on_error

    metrics: dict[str, float] = {}
    for score in summary["scores"]:
        if score["reported"]:
            name = f"evaluation/{score['metric']}"
            metrics[name] = score["score"]["value"]
            metrics |= {
                f"{name}/{bound}": score["score"][bound]
                for bound in ("low", "high", "count")
                if score["score"][bound] is not None
            }
    fail_fast()
    with (
        warn_on_error(f"the evaluation; it is in {folder}"),
        open_run(
            settings.tracking,
            run_dir,
            settings.tracking.run_name("training", run_dir),
            f"Scores of videos generated with the model in `{run_dir}`. Its training is not recorded here.",
        ) as run,
    ):
        run.metrics(metrics)
        for file in (PAGE_NAME, SUMMARY_NAME, TABLE_NAME):
            run.artifact(folder / file, "evaluation")
