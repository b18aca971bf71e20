"""Ingest as a Ray Data graph: prepare -> speech -> sight -> cut, one source a row, rows committed as they finish.

Goes in: files, a corpus, a configuration. Comes out: rows in `sources`, `clips` and `failures`, media in the corpus, and
an `IngestSummary`. Models live in the actors of their stage and load once. Steps that share libraries or data share a
stage, so that neither is paid twice. Errors are caught per source inside the steps; Ray's own error handling drops blocks.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ingest import media
from ingest.commits import commit
from ingest.config import IngestConfig, StageConfig
from ingest.records import Failure, SourceRecord
from ingest.sources import content_id, find_sources
from shards.cluster import ray_running
from shards.corpus import Corpus
from shards.errors import UserError

STAGES: dict[str, tuple[str, ...]] = {
    "prepare": ("probe", "sound"),
    "speech": ("diarize", "transcribe"),
    "sight": ("watch", "propose", "measure"),
    "cut": ("cut",),
}
"""Stages of the graph, in order, and the steps that each one runs."""

LOADING_STAGES = ("speech", "sight")
"""Stages that hold models: their workers are actors; the others are plain tasks."""

NEEDED_SPACE = 200 * 2**20
"""Bytes that must be free before ingest starts."""


@dataclass(frozen=True)
class Progress:
    """What `on_progress` hears after every source."""

    done: int
    total: int
    uri: str
    clips: int
    video_seconds: float
    failure: str


@dataclass
class IngestSummary:
    """What one ingest did. Seconds by step are added up over all workers."""

    sources: int = 0
    clips: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Message by path."""
    skipped_done: int = 0
    skipped_failed: int = 0
    duplicates: dict[str, str] = field(default_factory=dict)
    """Path of the copy -> path of the video with the same content."""
    passed_over: list[str] = field(default_factory=list)
    """Files of the named folders that are no videos by their names."""
    video_seconds: float = 0.0
    clip_seconds: float = 0.0
    seconds: float = 0.0
    step_seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ingest(
    sources: list[str],
    corpus_root: str | Path,
    config: IngestConfig | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    retry: bool = False,
) -> IngestSummary:
    """Measure every video named by `sources` into the corpus; what is committed already is not touched.

    A source that failed before under the same settings is tried again with `retry` only. Raises UserError for sources that
    cannot be found, a corpus that cannot be written, missing weights or ffmpeg, and a full disk; a bad video raises
    nothing and becomes a failure row.
    """
    began = time.perf_counter()
    config = config or IngestConfig()
    found = find_sources(sources)
    corpus = Corpus.create(corpus_root)
    summary = IngestSummary(passed_over=found.passed_over)
    todo, unreadable = _still_to_do(found.videos, corpus, config.digest(), retry, summary)
    total = len(todo) + len(unreadable)
    if total:
        _check_space(corpus)
        _Committer(corpus, config, summary, total, on_progress).take_all(iter(unreadable))
    if todo:
        _check_models(config)
        with _work_folder(corpus) as work, ray_running():
            committer = _Committer(corpus, config, summary, total, on_progress, done=len(unreadable))
            committer.take_all(_stream(todo, str(corpus.root), str(work), config))
    summary.seconds = time.perf_counter() - began
    return summary


class StageWorker:
    """One stage's steps in one process: called with a row, gives the row back."""

    def __init__(self, stage: str, config: str, corpus_root: str, work: str) -> None:
        from ingest.steps import STEPS

        settings = IngestConfig.model_validate_json(config)
        if stage in LOADING_STAGES:
            import torch

            torch.set_num_threads(getattr(settings.stages, stage).threads)
        extra = {"watch": {"work": work}, "cut": {"corpus_root": corpus_root, "work": work}}
        self._steps = [STEPS[name](settings, **extra.get(name, {})) for name in STAGES[stage]]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from ingest.steps import run_step

        record = SourceRecord.unpack(row["record"])
        for step in self._steps:
            run_step(step, record)
        return {"record": record.pack()}


def _stream(todo: list[SourceRecord], corpus_root: str, work: str, config: IngestConfig) -> Iterator[SourceRecord]:
    """Finished records, in the order in which they finish."""
    import ray

    _quieten(ray.data.DataContext.get_current())
    cpus = float(ray.cluster_resources().get("CPU", 1))
    dataset = ray.data.from_items([{"record": record.pack()} for record in todo], override_num_blocks=len(todo))
    arguments = {"config": config.model_dump_json(), "corpus_root": corpus_root, "work": work}
    for stage in STAGES:
        options: StageConfig = getattr(config.stages, stage)
        workers = options.workers or max(1, int(cpus // 2))
        if stage in LOADING_STAGES:
            dataset = dataset.map(
                StageWorker,
                fn_constructor_kwargs={"stage": stage, **arguments},
                num_cpus=options.num_cpus,
                num_gpus=options.num_gpus or None,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
            )
        else:
            pool = ray.data.TaskPoolStrategy(size=workers)
            dataset = dataset.map(_as_task(stage, arguments), num_cpus=options.num_cpus, compute=pool)
    for row in dataset.iter_rows():
        yield SourceRecord.unpack(row["record"])


def _quieten(context: Any) -> None:
    """Ray Data speaks to the console by default; what it has to say is in its own log files, and here in the summary."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)


def _as_task(stage: str, arguments: dict[str, str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def run(row: dict[str, Any]) -> dict[str, Any]:
        return StageWorker(stage, **arguments)(row)

    return run


class _Committer:
    """Takes finished records, commits them in small batches, keeps the summary, tells the progress."""

    def __init__(
        self,
        corpus: Corpus,
        config: IngestConfig,
        summary: IngestSummary,
        total: int,
        on_progress: Callable[[Progress], None] | None,
        done: int = 0,
    ) -> None:
        self.corpus, self.config, self.summary = corpus, config, summary
        self.total, self.done, self.on_progress = total, done, on_progress
        self._waiting: list[SourceRecord] = []
        self._since = time.monotonic()

    def take_all(self, records: Iterator[SourceRecord]) -> None:
        for record in records:
            if record.failure is not None and record.failure.error_type == "no-space":
                self._commit()
                raise UserError("the disk is full", where=self.corpus.root, do="free some space and run again", kind="no-space")
            self._waiting.append(record)
            late = time.monotonic() - self._since >= self.config.commit_seconds
            if late or len(self._waiting) >= self.config.commit_sources:
                self._commit()
            self._tell(record)
        self._commit()

    def _commit(self) -> None:
        commit(self.corpus, self._waiting, self.config.digest())
        for record in self._waiting:
            self._count(record)
        self._waiting, self._since = [], time.monotonic()

    def _count(self, record: SourceRecord) -> None:
        summary = self.summary
        summary.step_seconds = dict(Counter(summary.step_seconds) + Counter(record.step_seconds))
        if record.failure is not None:
            summary.failures[record.failure.error_type] = summary.failures.get(record.failure.error_type, 0) + 1
            summary.failed[record.uri] = record.failure.message
            return
        assert record.probe is not None
        summary.sources += 1
        summary.clips += len(record.clips)
        summary.video_seconds += record.probe.duration_s
        summary.clip_seconds += sum(row["end_s"] - row["start_s"] for row in record.clips)

    def _tell(self, record: SourceRecord) -> None:
        self.done += 1
        if self.on_progress is not None:
            seconds = record.probe.duration_s if record.probe else 0.0
            failure = record.failure.message if record.failure else ""
            self.on_progress(Progress(self.done, self.total, record.uri, len(record.clips), seconds, failure))


def _still_to_do(
    videos: list[str], corpus: Corpus, digest: str, retry: bool, summary: IngestSummary
) -> tuple[list[SourceRecord], list[SourceRecord]]:
    """Records of the sources that must be measured, and of those that cannot even be read."""
    known = corpus.read("sources", ["source_id", "digest"]).to_pylist()
    done = {row["source_id"] for row in known if row["digest"] == digest}
    lost = corpus.read("failures", ["uri", "source_id", "digest"]).to_pylist()
    failed = set() if retry else {(row["uri"], row["source_id"]) for row in lost if row["digest"] == digest}
    first: dict[str, str] = {}
    todo, unreadable = [], []
    for uri in videos:
        try:
            source_id = content_id(uri)
        except UserError as error:
            unreadable.append(SourceRecord(uri, "", failure=Failure("probe", error.kind, str(error))))
            continue
        if source_id in first:
            summary.duplicates[uri] = first[source_id]
            continue
        first[source_id] = uri
        if source_id in done:
            summary.skipped_done += 1
        elif (uri, source_id) in failed:
            summary.skipped_failed += 1
        else:
            todo.append(SourceRecord(uri, source_id))
    return todo, unreadable


def _check_models(config: IngestConfig) -> None:
    """Raise UserError now rather than inside every worker: for ffmpeg, and for each model file."""
    from ingest.transcription import whisper_source
    from shards.weights import resolve

    media.ffmpeg_path()
    whisper_source(config.transcription)
    resolve("ecapa", config.diarization.ecapa_folder or None)
    resolve("face-landmarker", config.faces.landmarker_folder or None)


def _check_space(corpus: Corpus) -> None:
    free = shutil.disk_usage(corpus.root).free
    if free < NEEDED_SPACE:
        raise UserError(f"only {free // 2**20} MiB are free", where=corpus.root, do="free some space", kind="no-space")


@contextmanager
def _work_folder(corpus: Corpus) -> Iterator[Path]:
    """A folder for half-written files, on the corpus's own disk; those of runs that are gone are removed."""
    host = socket.gethostname()
    parent = corpus.root / ".work"
    for other in parent.glob(f"{host}-*"):
        if not Path(f"/proc/{other.name.rpartition('-')[2]}").exists():
            shutil.rmtree(other, ignore_errors=True)
    work = parent / f"{host}-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
