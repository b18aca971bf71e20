"""Step `fetch`: the source as a local file, either itself or a copy in the run's download cache."""

from __future__ import annotations

from pathlib import Path

from uniavgen.ingest.engine.step import Step, StepGraph
from uniavgen.ingest.io.download_cache import DownloadCache
from uniavgen.ingest.io.local_files import content_id
from uniavgen.ingest.io.uris import Entry
from uniavgen.ingest.records import DELETED, DELETED_MESSAGE, LocalCopy, SourceRecord
from uniavgen.shards.corpus.deletion import read_tombstones
from uniavgen.shards.errors import UserError


class FetchStep(Step):
    """Path of the source on this machine. Sets `source_id`, and fails for a deleted source."""

    name = "fetch"
    pool = "prepare"
    version = "1"
    result = LocalCopy
    stored = False
    on_demand = True

    def __init__(self, graph: StepGraph, run_dir: Path, corpus_root: Path) -> None:
        super().__init__(graph, run_dir, corpus_root)
        self._cache = DownloadCache(self.config.sources, run_dir)

    def measure(self, record: SourceRecord) -> LocalCopy:
        path = self._cache.fetch(_entry(record))
        record.source_id = record.source_id or content_id(path)
        if read_tombstones(self.corpus_root).contains(record.source_id):
            raise UserError(DELETED_MESSAGE, where=record.uri, hint="leave it out", kind=DELETED)
        return LocalCopy(path)

    def release(self, record: SourceRecord) -> None:
        self._cache.release(record.uri)

    def discard(self, record: SourceRecord) -> None:
        self._cache.drop(_entry(record))


def _entry(record: SourceRecord) -> Entry:
    return Entry(record.uri, record.stamp, record.bytes)
