"""`uniavgen caption`: describe the kept clips by a vision model; progress, a summary, and the count in MLflow."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration import console

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config


def caption_corpus(root: Path, settings: Config, *, retry: bool = False) -> dict[str, Any]:
    """Caption what is kept and has no caption of this model and prompt yet."""
    from uniavgen.curation.captions.vlm_captions import caption_clips
    from uniavgen.orchestration.commands.corpus_jobs import corpus_run
    from uniavgen.shards.corpus.tables import Corpus

    corpus = Corpus.open(root)
    with console.progress("captions") as bar:
        summary = caption_clips(
            corpus,
            settings.caption,
            on_progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
            retry=retry,
        )
    rows = [
        ("clips kept", summary.kept),
        ("had a caption", summary.had_one),
        ("captioned now", summary.captioned),
        *((f"failed: {kind}", count) for kind, count in sorted(summary.failed.items())),
        ("still without", summary.left),
        ("tokens", summary.tokens),
        ("seconds", summary.seconds),
    ]
    console.table(f"captions by {summary.model}, prompt {summary.prompt_digest}", ("what", "figure"), rows)
    if settings.caption.backend == "measurements":
        console.console.print(
            "the embedded captions are made when shards are written; name a model: --set caption.backend=openai"
        )
    if summary.stopped:
        console.console.print(
            f"stopped: {summary.stopped}; run the same command again to go on", style="yellow"
        )
    elif summary.left:
        console.console.print(f"{summary.left} clips have rows in the failures table; ask again: --retry")
    with corpus_run(corpus, settings) as run:
        run.params({"caption_model": summary.model, "caption_prompt_digest": summary.prompt_digest})
        run.metrics(
            {"captions/captioned": summary.captioned + summary.had_one, "captions/left": summary.left}
        )
    return {"command": "caption", "corpus": str(corpus.root), **dataclasses.asdict(summary)}
