"""`uniavgen cache-latents`: latents, mels and caption features of every shard, once; progress, a summary, figures in MLflow."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration import console
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config


def cache_corpus_latents(root: Path, settings: Config) -> dict[str, Any]:
    """Bring the cached latents in line with the shards and with `train.data`.

    Raises UserError for several windows, whose latents no training would read.
    """
    from uniavgen.orchestration.commands.corpus_jobs import corpus_run
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.train.data.latent_caching import cache_latents

    corpus, data = Corpus.open(root), settings.train.data
    if data.buckets:
        what = (
            f"training takes {len(data.buckets)} windows and encodes them on line; latents are cached for one"
        )
        hint = "leave cache-latents out, or train on one window: train.data.buckets=[]"
        raise UserError(what, where="train.data.buckets", hint=hint, kind="several-windows")
    with console.progress("latents, by shard") as bar:
        summary = cache_latents(
            corpus.root / "shards",
            data,
            on_progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    rows = [
        ("shards with latents", summary.shards),
        ("made now", summary.made),
        ("stood already", summary.stood),
        ("stale ones removed", summary.removed),
        ("samples", summary.samples),
        *((f"clips passed over: {reason}", count) for reason, count in sorted(summary.passed_over.items())),
        ("MB", summary.bytes / 1e6),
        ("seconds", summary.seconds),
    ]
    window = f"{data.cached.windows} windows of {data.frames} frames, {data.width} x {data.height} px, {data.cached.dtype}"
    console.table(f"latents {summary.digest}: {window}", ("what", "figure"), rows)
    for part, description in summary.described.items():
        console.console.print(f"  {part}: {description}", style="dim", markup=False)
    for failure in summary.failed:
        console.console.print(f"no latents: {failure}", style="red", markup=False, soft_wrap=True)
    with corpus_run(corpus, settings) as run:
        run.params({f"latents.{summary.digest}": window})
        run.metrics(
            {
                "latents/samples": summary.samples,
                "latents/shards": summary.shards,
                "latents/mb": summary.bytes / 1e6,
            }
        )
    return {"command": "cache-latents", "corpus": str(corpus.root), **dataclasses.asdict(summary)}
