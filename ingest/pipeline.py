"""Ingest as a Ray Data graph: prepare -> speech -> sight -> cut, one source a row, rows committed as they finish.

Goes in: videos, a corpus, a configuration. Comes out: rows in `sources`, `clips` and `failures`, media in the corpus, and an
`IngestSummary`. Models live in the actors of their stage and load once. A row carries who the source is and what became of
it; what steps find out is stored by them, and read where it is needed. Errors are caught per source inside the stages; a
worker that dies is started again by Ray and finds out what killed it (`watchdog`). Ray's own error handling drops blocks.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.commits import DUPLICATE, Ledger, disk_full
from uniavgen.ingest.engine.live_progress import Live
from uniavgen.ingest.engine.progress import IngestSummary, Lost, Progress
from uniavgen.ingest.engine.ray_graph import finished_sources
from uniavgen.ingest.engine.run_dir import is_running, show_life, work_folder
from uniavgen.ingest.engine.step_cache import Results
from uniavgen.ingest.engine.step_graph import STEP_NAMES
from uniavgen.ingest.io.sources import find_sources
from uniavgen.ingest.records import MeasuredRows, Probe, Proposals, SourceRecord
from uniavgen.shards.cluster import ray_running
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

__all__ = ["IngestSummary", "Progress", "ingest"]

NEEDED_SPACE = 200 * 2**20
"""Bytes that must be free before ingest starts."""


def ingest(
    sources: list[str],
    corpus_root: str | Path,
    config: IngestConfig | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    retry: bool = False,
    step: str = "",
) -> IngestSummary:
    """Measure every video named by `sources` into the corpus; what is committed already is not touched.

    A source that failed before under the same settings is tried again with `retry` only; with `step`, only if it failed
    in that step. Raises UserError for sources that cannot be found, a corpus that cannot be written, missing weights
    or ffmpeg, and a full disk; a bad video raises nothing and becomes a failure row.
    """
    began = time.perf_counter()
    config = config or IngestConfig()
    if step and step not in STEP_NAMES:
        raise UserError(
            f"there is no step {step!r}", hint=f"name one of: {', '.join(STEP_NAMES)}", kind="no-step"
        )
    found = find_sources(sources, config.sources)
    corpus = Corpus.create(corpus_root)
    ledger = Ledger(corpus, config.digest())
    work = ledger.work(found.entries, retry or bool(step), step)
    summary = IngestSummary(passed_over=found.passed_over, skipped_done=work.done, skipped_failed=work.failed)
    contents = ledger.contents
    summary.duplicates = {uri: contents[source_id] for uri, source_id in work.copies.items()}
    if work.todo:
        _check_space(corpus)
        check_models(config)
        _measure(work.todo, corpus, ledger, config, summary, on_progress)
    summary.seconds = time.perf_counter() - began
    return summary


def check_models(config: IngestConfig) -> None:
    """Raise UserError now rather than inside every worker: for ffmpeg, and for each step's files."""
    from uniavgen.ingest.io.ffmpeg import ffmpeg_path
    from uniavgen.ingest.measures.steps import STEP_CLASSES

    ffmpeg_path()
    for steps in STEP_CLASSES.values():
        for step in steps:
            step.check(config)


def _measure(
    todo: list[SourceRecord],
    corpus: Corpus,
    ledger: Ledger,
    config: IngestConfig,
    summary: IngestSummary,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    with work_folder(corpus.root) as scratch, ray_running():
        live = Live(ledger.contents, len(todo), summary, on_progress)
        committer = _Committer(corpus, ledger, config, summary, live, scratch)
        # the longest first, so that the last ones to end are short
        todo = sorted(todo, key=lambda record: -(record.bytes or 0))
        committer.take_all(finished_sources(todo, corpus.root, scratch, config, live.board))
        summary.steps = live.totals()
        summary.step_seconds = {name: step.seconds for name, step in summary.steps.items() if step.seconds}
        ledger.sweep(lambda owner: owner != scratch.name and is_running(corpus.root, owner))
        ledger.tidy()


class _Committer:
    """Takes finished records, commits them in small batches, keeps the summary."""

    def __init__(
        self,
        corpus: Corpus,
        ledger: Ledger,
        config: IngestConfig,
        summary: IngestSummary,
        live: Live,
        scratch: Path,
    ) -> None:
        from uniavgen.ingest.measures.steps import Fetching, Hearing

        self.corpus, self.ledger, self.config, self.summary, self.live = corpus, ledger, config, summary, live
        self._scratch = scratch
        self._results = Results(corpus.root)
        self._keys = config.keys()
        self._files = [step(config, scratch, corpus.root) for step in (Fetching, Hearing)]
        self._waiting: list[SourceRecord] = []
        self._since = time.monotonic()

    def take_all(self, records: Iterator[SourceRecord | None]) -> None:
        """Until they end; None says that time has passed and nothing else happened."""
        for record in records:
            if record is not None:
                if record.failure is not None and record.failure.error_type == "no-space":
                    self._commit()
                    raise disk_full(self.corpus)
                record.load_result = self._stored
                self._waiting.append(record)
            self.live.tick()
            show_life(self._scratch)
            late = time.monotonic() - self._since >= self.config.commit_seconds
            if self._waiting and (late or len(self._waiting) >= self.config.commit_sources):
                self._commit()
        self._commit()

    def _stored(self, record: SourceRecord, kind: type) -> Any:
        from uniavgen.ingest.measures.steps import STEP_OF

        name = STEP_OF[kind]
        return self._results.load(record.source_id, name, self._keys[name], kind)

    def _commit(self) -> None:
        self.ledger.commit(self._waiting)
        for record in self._waiting:
            self._count(record)
            self.live.ended(record)
            if (
                record.failure is None or record.failure.error_type != DUPLICATE
            ):  # its first may be at work still
                for step in self._files:
                    step.drop(record)
        self._waiting, self._since = [], time.monotonic()

    def _count(self, record: SourceRecord) -> None:
        summary = self.summary
        probe = record.result(Probe) if record.source_id else None
        length = probe.duration_s if probe else 0.0
        if record.failure is None:
            rows = record.result(MeasuredRows).clips
            summary.sources += 1
            summary.clips += len(rows)
            summary.video_seconds += length
            summary.clip_seconds += sum(row["end_s"] - row["start_s"] for row in rows)
            return
        kind = record.failure.error_type
        if kind == DUPLICATE:
            summary.duplicates[record.uri] = record.failure.message.removeprefix("same content as ")
            return
        proposals = record.result(Proposals) if record.source_id else None
        lost = summary.lost.setdefault(kind, Lost())
        lost.sources += 1
        lost.clips += len(proposals.clips) if proposals else 0
        lost.video_seconds += length
        summary.failures[kind] = lost.sources
        summary.failed[record.uri] = record.failure.message


def _check_space(corpus: Corpus) -> None:
    free = shutil.disk_usage(corpus.root).free
    if free < NEEDED_SPACE:
        raise UserError(
            f"only {free // 2**20} MiB are free", where=corpus.root, hint="free some space", kind="no-space"
        )
