"""`uniavgen caption`: describe the kept clips with a vision-language model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CorpusOption, command

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.tracking.mlflow_runs import Run


@command
def caption(
    settings: Config,
    corpus: CorpusOption,
    retry: Annotated[
        bool, typer.Option("--retry", help="Also ask again for clips whose answer was unusable.")
    ] = False,
) -> dict[str, Any]:
    """Describe the kept clips with a vision-language model.

    Clips that have a caption of this model and prompt are skipped. The settings `caption` name the model.

    Example: uniavgen caption --corpus data/corpus --set caption.backend=openai
    """
    return caption_corpus(corpus, settings, retry=retry)


def caption_corpus(root: Path, settings: Config, *, retry: bool = False) -> dict[str, Any]:
    """Caption the kept clips that have no caption of this model and prompt yet."""
    from uniavgen.curation.captions.vlm_captions import caption_clips
    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.tracking.corpus_run import record_in_corpus_run
    from uniavgen.shards.corpus.tables import Corpus

    corpus = Corpus.open(root)
    with console.progress("captions") as bar:
        summary = caption_clips(corpus, settings.caption, on_progress=bar.update, retry=retry)
    rows = [
        ("kept clips", summary.kept),
        ("captioned before", summary.had_one),
        ("captioned now", summary.captioned),
        *((f"failed: {kind}", count) for kind, count in sorted(summary.failed.items())),
        ("without caption", summary.left),
        ("tokens", summary.tokens),
        ("seconds", summary.seconds),
    ]
    console.table(f"captions by {summary.model}, prompt {summary.prompt_digest}", ("what", "count"), rows)
    if settings.caption.backend == "measurements":
        console.print_line(
            "captions from measurements are made when shards are written; "
            "to use a model: --set caption.backend=openai"
        )
    if summary.stopped:
        console.print_line(
            f"stopped: {summary.stopped}; run the same command again to continue", style="yellow"
        )
    elif summary.left:
        console.print_line(f"{summary.left} clips have rows in the failures table; ask again: --retry")

    def log(run: Run) -> None:
        run.params({"caption_model": summary.model, "caption_prompt_digest": summary.prompt_digest})
        run.metrics(
            {"captions/captioned": summary.captioned + summary.had_one, "captions/left": summary.left}
        )

    record_in_corpus_run(corpus, settings.tracking, log)
    return {"command": "caption", "corpus": str(corpus.root), **dataclasses.asdict(summary)}
