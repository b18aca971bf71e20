"""Ingest: find sources, run the measuring steps on those that are new, commit the finished ones.

Input: videos, a corpus, a configuration. Output: rows in `sources`, `clips` and `failures`, media files in
the corpus, and an `IngestSummary`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.commits import Committer, cut_rows
from uniavgen.ingest.engine.loading import LOADING, deaths
from uniavgen.ingest.engine.machine_faults import MACHINE, Suspicion, stopping_error
from uniavgen.ingest.engine.progress import FailureTotals, IngestSummary, LiveProgress, Progress
from uniavgen.ingest.engine.ray_graph import finished_sources
from uniavgen.ingest.engine.run_dir import PROGRESS_FILE, is_running, make_run_dir, touch_alive
from uniavgen.ingest.engine.step import StepGraph
from uniavgen.ingest.engine.step_cache import StepCache
from uniavgen.ingest.ffmpeg_check import check_ffmpeg
from uniavgen.ingest.io.probe_client import check_prober
from uniavgen.ingest.io.sources import find_sources
from uniavgen.ingest.measures.registry import step_graph
from uniavgen.ingest.records import DUPLICATE, Failure, MeasuredRows, Probe, Proposals, SourceRecord
from uniavgen.shards.cluster import ray_running
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError, choice_hint
from uniavgen.shards.heartbeat import Heartbeat

__all__ = ["IngestSummary", "Progress", "ingest"]

MIN_FREE_BYTES = 200 * 2**20
"""Free disk space without which ingest does not start."""


def ingest(
    sources: list[str],
    corpus_root: str | Path,
    config: IngestConfig | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    retry: bool = False,
    step: str = "",
) -> IngestSummary:
    """Measure every video named by `sources` into the corpus. Committed sources are not touched.

    A source that failed before under the same settings is tried again with `retry` only; with `step`, only if
    it failed in that step. Raises UserError for sources that cannot be found, a corpus that cannot be
    written, missing weights or ffmpeg, and a full disk; a bad video raises nothing and becomes a failure row.
    """
    started = time.perf_counter()
    graph = step_graph(config or IngestConfig())
    if step and step not in graph.by_name:
        raise UserError(f"there is no step {step!r}", hint=choice_hint(step, graph.by_name), kind="no-step")
    listed = find_sources(sources, graph.config.sources)
    corpus = Corpus.create(corpus_root)
    committer = Committer(corpus, graph.digest)
    work = committer.pending(listed.entries, retry or bool(step), step)
    summary = IngestSummary(
        passed_over=listed.passed_over,
        skipped_done=work.done,
        skipped_failed=work.failed,
        skipped_failed_clips=work.failed_clips,
    )
    contents = committer.contents
    summary.duplicates = {uri: contents[source_id] for uri, source_id in work.duplicates.items()}
    if work.todo:
        _check_space(corpus)
        check_requirements(graph)
        _measure(work.todo, committer, graph, summary, on_progress)
    summary.seconds = time.perf_counter() - started
    return summary


def check_requirements(graph: StepGraph) -> None:
    """Raise UserError for an ffmpeg or a prober that does not work, or missing weights, before every worker
    does.
    """
    check_ffmpeg(graph.config.limits)
    check_prober()
    for step in graph.steps:
        step.check(graph.config)


def _measure(
    todo: list[SourceRecord],
    committer: Committer,
    graph: StepGraph,
    summary: IngestSummary,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    root = committer.corpus.root
    with make_run_dir(root) as run_dir, Heartbeat(run_dir / PROGRESS_FILE) as beat, ray_running():
        reported = _with_heartbeat(beat, on_progress)
        live = LiveProgress(list(graph.by_name), committer.contents, len(todo), summary, reported)
        # the longest first, so that the last ones to end are short
        todo = sorted(todo, key=lambda record: -(record.bytes or 0))
        records = finished_sources(todo, graph, run_dir, root, live.run_state)
        with _explaining_deaths(run_dir, root):
            _BatchedCommits(committer, graph, summary, live, run_dir).commit_all(records)
        summary.steps = live.totals()
        summary.step_seconds = {name: step.seconds for name, step in summary.steps.items() if step.seconds}
        committer.delete_uncommitted(lambda run: run != run_dir.name and is_running(root, run))
        committer.compact()


def _with_heartbeat(
    beat: Heartbeat, on_progress: Callable[[Progress], None] | None
) -> Callable[[Progress], None]:
    """A receiver of progress that also writes it to the heartbeat."""
    work_began_s: float | None = None

    def receive(progress: Progress) -> None:
        nonlocal work_began_s
        if work_began_s is None and any(step.seconds for step in progress.steps):
            work_began_s = progress.elapsed_s
        beat.update(progress=asdict(progress), work_began_s=work_began_s)
        if on_progress is not None:
            on_progress(progress)

    return receive


@contextmanager
def _explaining_deaths(run_dir: Path, root: Path) -> Iterator[None]:
    """Where Ray ends the run because workers die at once, say in which step they loaded models."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        steps = deaths(run_dir / LOADING)
        if not steps:
            raise
        step = next(iter(steps))
        failure = Failure(step, MACHINE, f"workers died while {step} loaded its models")
        raise stopping_error(failure, root) from error


class _BatchedCommits:
    """Takes finished records, commits them in small batches, and counts them in the summary."""

    def __init__(
        self,
        committer: Committer,
        graph: StepGraph,
        summary: IngestSummary,
        live: LiveProgress,
        run_dir: Path,
    ) -> None:
        self._committer, self._graph, self._summary, self._live = committer, graph, summary, live
        self._run_dir = run_dir
        root = committer.corpus.root
        self._cache = StepCache(root)
        self._steps = [step(graph, run_dir, root) for step in graph.steps if step.on_demand]
        self._suspicion = Suspicion(root)
        self._batch: list[SourceRecord] = []
        self._batch_started = time.monotonic()

    def commit_all(self, records: Iterator[SourceRecord | None]) -> None:
        """Commit until the records end; None means that some time has passed and nothing else happened."""
        config = self._graph.config
        for record in records:
            if record is not None:
                record.load_result = self._load_result
                try:
                    self._batch += self._suspicion.admit(record)
                except UserError:
                    self._commit()
                    raise
            self._live.tick()
            touch_alive(self._run_dir)
            is_late = time.monotonic() - self._batch_started >= config.commit_seconds
            if self._batch and (is_late or len(self._batch) >= config.commit_sources):
                self._commit()
        self._batch += self._suspicion.end()
        self._commit()

    def _load_result(self, record: SourceRecord, kind: type) -> Any:
        name = self._graph.step_of(kind)
        return self._cache.load(record.source_id, name, self._graph.key(name, record.result), kind)

    def _commit(self) -> None:
        self._committer.commit(self._batch)
        for record in self._batch:
            self._count(record)
            self._live.source_ended(record)
            # the original of a duplicate may still be at work on the same files
            if record.failure is None or record.failure.error_type != DUPLICATE:
                for step in self._steps:
                    step.discard(record)
        self._batch, self._batch_started = [], time.monotonic()

    def _count(self, record: SourceRecord) -> None:
        summary = self._summary
        probe = record.result(Probe) if record.source_id else None
        video_s = probe.duration_s if probe else 0.0
        if record.failure is None:
            rows = cut_rows(record)
            self._count_failed_clips(record)
            summary.sources += 1
            summary.clips += len(rows)
            summary.video_seconds += video_s
            summary.clip_seconds += sum(row["end_s"] - row["start_s"] for row in rows)
            return
        kind = record.failure.error_type
        if kind == DUPLICATE:
            summary.duplicates[record.uri] = record.failure.message.removeprefix("same content as ")
            return
        proposals = record.result(Proposals) if record.source_id else None
        totals = summary.lost.setdefault(kind, FailureTotals())
        totals.sources += 1
        totals.clips += len(proposals.clips) if proposals else 0
        totals.video_seconds += video_s
        summary.failures[kind] = totals.sources
        summary.failed[record.uri] = record.failure.message

    def _count_failed_clips(self, record: SourceRecord) -> None:
        for row in record.result(MeasuredRows).clips:
            failure = record.clip_failures.get(row["clip_id"])
            if failure is not None:
                totals = self._summary.lost.setdefault(failure.error_type, FailureTotals())
                totals.clips += 1
                totals.video_seconds += row["end_s"] - row["start_s"]
                self._summary.failed_clips[row["clip_id"]] = failure.message


def _check_space(corpus: Corpus) -> None:
    free = shutil.disk_usage(corpus.root).free
    if free < MIN_FREE_BYTES:
        raise UserError(
            f"only {free // 2**20} MiB are free", where=corpus.root, hint="free some space", kind="no-space"
        )
