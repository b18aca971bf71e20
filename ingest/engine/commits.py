"""Commits finished sources to the corpus tables, and tells which sources still have to be measured.

The order of writes makes a crash harmless: a source's media files are in place before its clips are
committed, and its clips before its own row. The source row is the proof that it is done; whatever is missing
behind it is made again by the next run, under the same names. A clip that cannot be cut is a row of
`failures` of its own, and its source is done. A commit locks the tables and starts by reading
what others (another ingest, `forget`) have written since the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uniavgen.ingest.engine.clip_files import ClipFiles
from uniavgen.ingest.engine.machine_faults import disk_full
from uniavgen.ingest.engine.step_cache import StepCache
from uniavgen.ingest.io.uris import Entry
from uniavgen.ingest.records import DELETED, DELETED_MESSAGE, DUPLICATE, Failure, MeasuredRows, SourceRecord
from uniavgen.shards.corpus.deletion import read_tombstones
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import printable

UNREACHABLE = ("vanished", "unreadable", "unreachable", "no-room", "incomplete")
"""Failure kinds that say nothing about the content: an earlier measurement of it stays."""

CLIP_PREFIX = "clip:"
"""Begins the `uri` of a failed clip, which its clip_id follows."""

CLIP_STAGES = ("cut",)
"""Steps of ingest in which a clip fails alone. Curation has rows of its own for clips."""

BAD_LINE = "bad-line"
"""Failure kind of a line in a list file that can name no file."""

TABLES = ("sources", "clips", "failures")

COMPACT_FILES = 50
"""Number of table files that are compacted, and commits between two looks at that number. Heuristic: each
commit adds files, and opening a table costs by their number."""


@dataclass
class PendingWork:
    """The sources of one ingest call, by what has to be done with them."""

    todo: list[SourceRecord]
    done: int
    failed: int
    duplicates: dict[str, str]
    """URI of a duplicate that an earlier run found -> source_id."""
    failed_clips: int = 0
    """Clips of done sources that failed."""


class Committer:
    """Reads and extends the corpus tables for one run. `digest`: of its settings (`StepGraph.digest`)."""

    def __init__(self, corpus: Corpus, digest: str) -> None:
        self.corpus = corpus
        self.digest = digest
        self.clip_files = ClipFiles(corpus.root)
        self._uris: dict[str, str] = {}
        self._new_ids: set[str] = set()
        """source_ids that were committed since this run began, by any run."""
        self._commits = 0
        self._tombstones = read_tombstones(corpus.root)
        self._read_state: Any = None
        with corpus.writing():
            self._refresh()
        self._new_ids.clear()

    @property
    def contents(self) -> dict[str, str]:
        """source_id -> URI of every source in the corpus."""
        return dict(self._uris)

    def pending(self, entries: list[Entry], retry: bool, step: str = "") -> PendingWork:
        """Sort `entries` into done, failed and to do, by their URIs and stamps alone; no file is read.

        Failed sources and clips are not tried again unless `retry`; with `step`, only those that failed in
        that step. With `retry` and no step, sources whose clips have lost files are done again too.
        """
        work = PendingWork([], 0, 0, {})
        failed_clips = self._failed_clips()
        incomplete = self._sources_with_missing_files() if retry and not step else set()
        if retry:
            incomplete |= {
                row["source_id"]
                for rows in failed_clips.values()
                for row in rows.values()
                if step in ("", row["stage"])
            }
        for entry in entries:
            failure = self._failures.get(entry.uri)
            rows = [*self._sources.get(entry.uri, []), *([failure] if failure else [])]
            known = next((row for row in rows if entry.stamp and row["stamp"] == entry.stamp), None)
            settled = known is not None and known["digest"] == self.digest
            is_duplicate = failure is not None and failure["error_type"] == DUPLICATE
            if known and settled and known is not failure and known["source_id"] not in incomplete:
                work.done += 1
                work.failed_clips += len(failed_clips.get(known["source_id"], {}))
            elif failure and is_duplicate and settled and failure["source_id"] in self._uris:
                work.duplicates[entry.uri] = failure["source_id"]
            elif (
                failure
                and failure["digest"] == self.digest
                and failure["stamp"] == entry.stamp
                and not (is_duplicate or (retry and step in ("", failure["stage"])))
            ):
                work.failed += 1
            else:
                source_id = (known["source_id"] or "") if known else ""
                problem = Failure("fetch", BAD_LINE, entry.problem) if entry.problem else None
                work.todo.append(
                    SourceRecord(entry.uri, source_id, entry.stamp, entry.bytes, problem, origin=entry.origin)
                )
        return work

    def commit(self, records: list[SourceRecord]) -> None:
        """Commit finished records: clips, then sources, then failures. Rows and media of earlier runs go.

        A record whose content another source of this run committed first becomes a failure here. Raises
        UserError (no-space).
        """
        try:
            with self.corpus.writing():
                self._refresh()
                for record in records:
                    self._fail_uncommittable(record)
                good = [record for record in records if record.failure is None]
                bad = [record for record in records if record.failure is not None]
                if good:
                    self._commit_measured(good)
                if bad:
                    self._commit_failed(bad)
                self._commits += 1
                if self._commits % COMPACT_FILES == 0:
                    self.compact()
                self._read_state = self._table_state()
        except Exception as error:  # every layer of the table library has its own exceptions
            if "No space left" not in str(error):
                raise
            raise disk_full(self.corpus.root) from error

    def delete_uncommitted(self, is_alive: Callable[[str], bool]) -> None:
        """Delete media files that a dead run cut for sources it never committed."""
        for source_id in self.clip_files.uncommitted_sources(is_alive):
            clips = []
            if source_id in self._uris:
                rows = self.corpus.read("clips", ["clip_id"], only=("source_id", [source_id]))
                clips = rows["clip_id"].to_pylist()
            self.clip_files.keep_only(source_id, clips)

    def compact(self) -> None:
        """Merge the small table files that many commits leave."""
        for table in TABLES:
            self.corpus.compact(table, COMPACT_FILES)

    def _table_state(self) -> Any:
        """A value that changes with every write by anybody."""
        return self.corpus.versions(TABLES), self._tombstones.deletions

    def _refresh(self) -> None:
        """Read the tables, unless nobody has written since they were last read."""
        self._tombstones = read_tombstones(self.corpus.root)
        if self._table_state() == self._read_state:
            return
        corpus, before = self.corpus, set(self._uris)
        sources = corpus.read("sources", ["source_id", "uri", "stamp", "digest"]).to_pylist()
        columns = ["uri", "source_id", "stamp", "digest", "stage", "error_type", "attempts"]
        self._failures = {row["uri"]: row for row in corpus.read("failures", columns).to_pylist()}
        self._uris = {row["source_id"]: row["uri"] for row in sources}
        self._sources: dict[str, list[dict[str, Any]]] = {}
        for row in sources:
            # a file whose content was replaced has a row for each content
            self._sources.setdefault(row["uri"], []).append(row)
        self._with_clips = set(corpus.read("clips", ["source_id"])["source_id"].unique().to_pylist())
        self._new_ids |= self._uris.keys() - before
        self._read_state = self._table_state()

    def _fail_uncommittable(self, record: SourceRecord) -> None:
        """Fail a deleted source, a duplicate, or one whose stored results are gone."""
        if record.source_id and self._tombstones.contains(record.source_id):
            record.failure = Failure("fetch", DELETED, DELETED_MESSAGE)
        if record.failure is not None:
            return
        first = self._uris.get(record.source_id, record.uri)
        if first != record.uri and record.source_id in self._new_ids:
            record.failure = Failure("fetch", DUPLICATE, f"same content as {first}")
        elif _lacks_result(record):
            message = "its stored measurements no longer exist; run again with --retry"
            record.failure = Failure("measure", "lost", message)

    def _commit_measured(self, records: list[SourceRecord]) -> None:
        clips = {record.source_id: cut_rows(record) for record in records}
        rows = [row for source_rows in clips.values() for row in source_rows]
        old = self._clip_ids(list(clips))
        new = {row["clip_id"] for row in rows}
        self._put("clips", rows, replace=bool(self._with_clips & set(clips)))
        self.corpus.remove("clips", sorted(old - new))
        self.clip_files.delete(old - new)
        before, new_failures = self._put_clip_failures(records)
        source_rows = [source_row(record, self.digest) for record in records]
        self._put("sources", source_rows, replace=bool(self._uris.keys() & set(clips)))
        self.corpus.remove("failures", sorted(before - new_failures))
        for uri in before - new_failures:
            del self._failures[uri]
        self._with_clips |= set(clips)
        self._new_ids |= set(clips)
        self._uris |= {record.source_id: record.uri for record in records}
        for record in records:
            kept = [row["clip_id"] for row in clips[record.source_id]]
            self.clip_files.keep_only(record.source_id, kept)

    def _put_clip_failures(self, records: list[SourceRecord]) -> tuple[set[str], set[str]]:
        """Write the failed clips of measured sources; the keys of their failure rows before and now."""
        listed = self._failed_clips()
        before = {record.uri for record in records} & self._failures.keys()
        before |= {uri for record in records for uri in listed.get(record.source_id, {})}
        rows = []
        for record in records:
            for clip, failure in record.clip_failures.items():
                uri = f"{CLIP_PREFIX}{clip}"
                attempts = self._failures[uri]["attempts"] + 1 if uri in before else 1
                rows.append(failure_row(record, failure, self.digest, attempts, uri))
        new = {row["uri"]: row for row in rows}
        self._put("failures", rows, replace=bool(self._failures.keys() & new.keys()))
        self._failures |= new
        return before, set(new)

    def _failed_clips(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Failure rows of clips that ingest could not make: source_id -> uri of the row -> row."""
        listed: dict[str, dict[str, dict[str, Any]]] = {}
        for uri, row in self._failures.items():
            if uri.startswith(CLIP_PREFIX) and row["stage"] in CLIP_STAGES:
                listed.setdefault(row["source_id"], {})[uri] = row
        return listed

    def _commit_failed(self, records: list[SourceRecord]) -> None:
        for record in records:
            if record.failure and record.failure.error_type == DELETED and record.source_id:
                self._discard(record.source_id)
        committed = set(self._uris.values())
        records = [record for record in records if not (_keeps_rows(record) and record.uri in committed)]
        failed_ids = {
            record.source_id
            for record in records
            if record.failure
            and record.failure.error_type != DUPLICATE
            and record.source_id not in self._new_ids
        }
        # a source that succeeded under other settings and fails now must not be in both tables
        replaced = sorted(failed_ids & self._uris.keys())
        self.corpus.remove("sources", replaced)
        old = self._clip_ids(list(failed_ids))
        self.corpus.remove("clips", sorted(old))
        self.clip_files.delete(old)
        listed = self._failed_clips()
        gone = {uri for source_id in failed_ids for uri in listed.get(source_id, {})}
        self.corpus.remove("failures", sorted(gone))
        for uri in gone:
            del self._failures[uri]
        rows = []
        for record in records:
            assert record.failure is not None
            before = self._failures.get(record.uri)
            attempts = (before["attempts"] if before else 0) + 1
            rows.append(failure_row(record, record.failure, self.digest, attempts, record.uri))
        self._put("failures", rows, replace=any(record.uri in self._failures for record in records))
        self._failures |= {row["uri"]: row for row in rows}
        for source_id in replaced:
            del self._uris[source_id]
        self._with_clips -= failed_ids
        for source_id in failed_ids - {""}:
            self.clip_files.keep_only(source_id, [])

    def _sources_with_missing_files(self) -> set[str]:
        clips = self.corpus.read("clips", ["clip_id", "source_id", "has_audio"])
        ids, sources = clips["clip_id"].to_pylist(), clips["source_id"].to_pylist()
        with_audio = [has_audio != 0 for has_audio in clips["has_audio"].to_pylist()]
        incomplete = self.clip_files.incomplete(zip(ids, with_audio, strict=True))
        return {source for clip, source in zip(ids, sources, strict=True) if clip in incomplete}

    def _discard(self, source_id: str) -> None:
        """Delete everything measured of a deleted source, except committed clips of other persons in it."""
        self.clip_files.keep_only(source_id, self._clip_ids([source_id]))
        StepCache(self.corpus.root).discard(source_id)

    def _put(self, table: str, rows: list[dict[str, Any]], *, replace: bool) -> None:
        """Write rows. Rows with new keys only are appended, which costs the same for a table of any size."""
        if replace:
            self.corpus.upsert(table, rows)
        else:
            self.corpus.append(table, rows)

    def _clip_ids(self, source_ids: list[str]) -> set[str]:
        known = [source_id for source_id in source_ids if source_id in self._with_clips]
        if not known:
            return set()
        return set(self.corpus.read("clips", ["clip_id"], only=("source_id", known))["clip_id"].to_pylist())


def _keeps_rows(record: SourceRecord) -> bool:
    """Whether a failure leaves the source's rows of an earlier measurement in place."""
    return record.failure is not None and record.failure.error_type in (*UNREACHABLE, DELETED)


def _lacks_result(record: SourceRecord) -> bool:
    rows: MeasuredRows | None = record.result(MeasuredRows)
    return rows is None


def source_row(record: SourceRecord, digest: str) -> dict[str, Any]:
    """The row of the sources table."""
    return {
        "source_id": record.source_id,
        "uri": record.uri,
        "stamp": record.stamp,
        "bytes": record.bytes,
        **record.result(MeasuredRows).source,
        "error": "",
        "step_seconds": list(record.step_seconds.items()),
        "digest": digest,
    }


def cut_rows(record: SourceRecord) -> list[dict[str, Any]]:
    """Rows of the clips table for the clips of a measured source that could be cut."""
    return [row for row in record.result(MeasuredRows).clips if row["clip_id"] not in record.clip_failures]


def failure_row(
    record: SourceRecord, failure: Failure, digest: str, attempts: int, uri: str
) -> dict[str, Any]:
    """The row of the failures table for a source, or for one of its clips."""
    in_list = record.origin and failure.stage == "fetch" and failure.error_type != DUPLICATE
    message = f"{failure.message} ({record.origin})" if in_list else failure.message
    return {
        "uri": uri,
        **vars(failure),
        "message": printable(message),
        "attempts": attempts,
        "source_id": record.source_id,
        "stamp": record.stamp,
        "digest": digest,
    }
