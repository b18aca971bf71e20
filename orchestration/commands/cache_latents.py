"""`uniavgen cache-latents`: encode every shard once; training then reads latents and runs no codec."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.commands.common import CheckFailed, CorpusOption, command

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.tracking.mlflow_runs import Run


@command
def cache_latents(settings: Config, corpus: CorpusOption) -> dict[str, Any]:
    """Encode the shards once, so that training skips the codecs.

    Video latents, mels and caption features are written as sidecar tars beside the shards.

    Example: uniavgen cache-latents --corpus data/corpus
    """
    summary = cache_corpus_latents(corpus, settings)
    if summary["failed"]:
        raise CheckFailed(summary)
    return summary


def cache_corpus_latents(root: Path, settings: Config) -> dict[str, Any]:
    """Bring the cached latents in line with the shards and with `train.data`.

    Raises UserError if several windows are configured: training encodes those while it runs.
    """
    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.tracking.corpus_run import record_in_corpus_run
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.errors import UserError
    from uniavgen.train.data.codec_fitting import ensure_codec
    from uniavgen.train.data.latent_caching import cache_latents

    corpus, data = Corpus.open(root), settings.train.data
    if data.buckets:
        raise UserError(
            f"latents can be cached for one window, {len(data.buckets)} are configured; "
            "training encodes them while it runs",
            where="train.data.buckets",
            hint="skip cache-latents, or train on one window: train.data.buckets=[]",
            kind="several-windows",
        )
    ensure_codec(corpus.root / "shards", data, console.print_line)
    with console.progress("latents, by shard") as bar:
        summary = cache_latents(corpus.root / "shards", data, on_progress=bar.update)
    rows = [
        ("shards with latents", summary.shards),
        ("encoded now", summary.made),
        ("encoded before", summary.stood),
        ("outdated, removed", summary.removed),
        ("samples", summary.samples),
        *((f"clips skipped: {reason}", count) for reason, count in sorted(summary.passed_over.items())),
        ("MB", summary.bytes / 1e6),
        ("seconds", summary.seconds),
    ]
    window = (
        f"{data.cached.windows} windows of {data.frames} frames, "
        f"{data.width} x {data.height} px, {data.cached.dtype}"
    )
    console.table(f"latents {summary.digest}: {window}", ("what", "count"), rows)
    for part, description in summary.described.items():
        console.print_line(f"  {part}: {description}", style="dim")
    for failure in summary.failed:
        console.print_line(f"no latents: {failure}", style="red")

    def log(run: Run) -> None:
        run.params({f"latents.{summary.digest}": window})
        run.metrics(
            {
                "latents/samples": summary.samples,
                "latents/shards": summary.shards,
                "latents/mb": summary.bytes / 1e6,
            }
        )

    record_in_corpus_run(corpus, settings.tracking, log)
    return {"command": "cache-latents", "corpus": str(corpus.root), **dataclasses.asdict(summary)}
