"""The commands that make a corpus and ask it: from raw videos to shards. Nothing heavy is imported here.

Goes in: settings and the options that were typed. Comes out: the command's summary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.command import CorpusOption, Fault

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config


def ingest(
    settings: Config,
    sources: Annotated[
        list[str],
        typer.Argument(help="Videos, folders, globs, URLs, or .txt files that list them.", metavar="SRC..."),
    ],
    corpus: CorpusOption,
    retry: Annotated[bool, typer.Option("--retry", help="Also try sources that failed before.")] = False,
    stage: Annotated[
        str,
        typer.Option("--stage", help="With --retry: only those that failed in this step.", metavar="STEP"),
    ] = "",
    forecast: Annotated[
        int | None,
        typer.Option("--forecast", min=1, help="Measure only N sources and predict the rest.", metavar="N"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if any source failed.")] = False,
) -> dict[str, Any]:
    """Measure raw videos into a corpus of clips."""
    from uniavgen.orchestration.commands.corpus_jobs import forecast_corpus, ingest_corpus
    from uniavgen.shards.errors import UsageError

    if stage and not retry:
        raise UsageError("--stage says which failures to retry", where="--stage", hint="give --retry too")
    if forecast is not None and retry:
        raise UsageError(
            "a forecast is for what was not tried yet", where="--forecast", hint="leave out --retry"
        )
    if forecast is None:
        summary = ingest_corpus(sources, corpus, settings, retry=retry, stage=stage)
    else:
        summary = forecast_corpus(sources, corpus, settings, forecast)
    if strict and summary["failures"]:
        raise Fault(summary)
    return summary


def curate(
    settings: Config,
    corpus: CorpusOption,
    policy: Annotated[
        str | None, typer.Option("--policy", help="A policy's name or YAML file.", metavar="FILE|NAME")
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            help="Only answer what another threshold would keep.",
            metavar="RULE[.min|.max]=VALUE",
        ),
    ] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", help="Only tell how each rule judges one clip.", metavar="CLIP")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Only tell how the yield follows each threshold.")
    ] = False,
) -> dict[str, Any]:
    """Decide which clips to keep, each with a reason.

    With --what-if, --explain or --sensitivity: only answer, and write nothing.
    """
    from uniavgen.orchestration.commands.corpus_jobs import curate_corpus
    from uniavgen.orchestration.commands.what_if import ask_sensitivity, ask_what_if, explain_clip
    from uniavgen.shards.errors import UsageError

    if sum((bool(what_if), explain is not None, sensitivity)) > 1:
        raise UsageError("ask one question at a time", where="--what-if, --explain, --sensitivity")
    if what_if:
        return ask_what_if(corpus, settings, policy, what_if)
    if explain is not None:
        return explain_clip(corpus, settings, policy, explain)
    if sensitivity:
        return ask_sensitivity(corpus, settings, policy)
    return curate_corpus(corpus, settings, policy)


def caption(
    settings: Config,
    corpus: CorpusOption,
    retry: Annotated[bool, typer.Option("--retry", help="Also ask again where the answer was bad.")] = False,
) -> dict[str, Any]:
    """Describe the kept clips by a vision model."""
    from uniavgen.orchestration.commands.caption import caption_corpus

    return caption_corpus(corpus, settings, retry=retry)


def shard(
    settings: Config,
    corpus: CorpusOption,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check what stands; exit with 1 on any defect.")
    ] = False,
    to: Annotated[
        str | None, typer.Option("--to", help="Then copy them to a folder or s3:// URL.", metavar="URL")
    ] = None,
) -> dict[str, Any]:
    """Write the kept clips as WebDataset shards."""
    from uniavgen.orchestration.commands.corpus_jobs import shard_corpus, verify_corpus_shards
    from uniavgen.orchestration.commands.publish import publish_corpus_shards
    from uniavgen.shards.errors import UsageError

    if to and verify:
        raise UsageError(
            "--verify changes nothing, --to copies", where="--to, --verify", hint="give one of them"
        )
    if to:
        return publish_corpus_shards(corpus, settings, to)
    if not verify:
        return shard_corpus(corpus, settings)
    summary = verify_corpus_shards(corpus, settings)
    if summary["defects"]:
        raise Fault(summary)
    return summary


def cache_latents(settings: Config, corpus: CorpusOption) -> dict[str, Any]:
    """Run the codecs once, for training to read what they gave.

    Latents, mels and caption features of the clips in the shards go into sidecars beside them.
    """
    from uniavgen.orchestration.commands.cache_latents import cache_corpus_latents

    summary = cache_corpus_latents(corpus, settings)
    if summary["failed"]:
        raise Fault(summary)
    return summary


def report(settings: Config, corpus: CorpusOption) -> dict[str, Any]:
    """Make the corpus's page: funnel, signals, playable clips."""
    from uniavgen.orchestration.commands.corpus_jobs import report_corpus

    return report_corpus(corpus, settings)


def forget(
    settings: Config,
    corpus: CorpusOption,
    source: Annotated[
        str | None, typer.Argument(help="A source: its id, path or file name.", metavar="SOURCE")
    ] = None,
    speaker: Annotated[
        str | None,
        typer.Option("--speaker", help="A speaker; who is surely the same person goes too.", metavar="ID"),
    ] = None,
) -> dict[str, Any]:
    """Remove a source or a person from everything, for good.

    Tables, media, captions, latents, shards and splits; and say which trainings had seen it.
    """
    from uniavgen.orchestration.commands.forget import forget_from_corpus

    return forget_from_corpus(corpus, settings, source, speaker)
