"""From finished records to committed rows: the one place where ingest reads what is done and writes what was done.

Order is the safety: a source's media files are in place before its clips are committed, its clips before its own row. The
source row is the proof of done; whatever is missing behind it is made again by the next run, under the same names. A commit
is alone with the tables, and begins with what others (another ingest, `forget`) have written since the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uniavgen.ingest.engine.clip_files import ClipMedia
from uniavgen.ingest.engine.step_cache import Results
from uniavgen.ingest.io.uris import Entry
from uniavgen.ingest.records import Failure, MeasuredRows, SourceRecord
from uniavgen.shards.corpus.deletion import read_tombstones
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

DUPLICATE = "duplicate"
"""Kind of a failure that is none: the source is a copy of another."""

OUT_OF_REACH = ("vanished", "unreadable", "unreachable", "no-room", "incomplete")
"""Kinds that say nothing of the content: what was measured of it before stays."""

FORGOTTEN = "forgotten"
"""Kind of a source that must not be measured again: someone asked for it to be forgotten."""

FORGOTTEN_SAYS = "this content, or somebody in it, was forgotten on request"

TABLES = ("sources", "clips", "failures")

MANY_FILES = 50
"""Table files from which they are put together, and commits from one look for that to the next (our choice): every commit
adds some, and opening a table costs by their number."""


@dataclass
class Work:
    """What an ingest has to do with the sources that it was given."""

    todo: list[SourceRecord]
    done: int
    failed: int
    copies: dict[str, str]
    """URI of a copy that an earlier run found -> source_id."""


class Ledger:
    """What the corpus's tables say of sources, as one run reads and extends it. `digest` names the run's settings."""

    def __init__(self, corpus: Corpus, digest: str) -> None:
        self.corpus = corpus
        self.digest = digest
        self.media = ClipMedia(corpus.root)
        self._uris: dict[str, str] = {}
        self._mine: set[str] = set()
        """Contents that came since this run began."""
        self._commits = 0
        self._forgotten = read_tombstones(corpus.root)
        self._seen: Any = None
        with corpus.writing():
            self._catch_up()
        self._mine.clear()

    @property
    def contents(self) -> dict[str, str]:
        """source_id -> URI of every source in the corpus."""
        return dict(self._uris)

    def work(self, entries: list[Entry], retry: bool, step: str = "") -> Work:
        """What is to be done for `entries`: nothing is read but their names and stamps.

        Failures are left alone unless `retry`; with `step`, unless they failed in that step. With `retry` alone, sources whose
        clips have lost files are done again too.
        """
        work = Work([], 0, 0, {})
        robbed = self._without_media() if retry and not step else set()
        for entry in entries:
            failure = self._failures.get(entry.uri)
            rows = [*self._sources.get(entry.uri, []), *([failure] if failure else [])]
            known = next((row for row in rows if entry.stamp and row["stamp"] == entry.stamp), None)
            settled = known is not None and known["digest"] == self.digest
            if known is not None and settled and known is not failure and known["source_id"] not in robbed:
                work.done += 1
            elif (
                failure
                and failure["error_type"] == DUPLICATE
                and settled
                and failure["source_id"] in self._uris
            ):
                work.copies[entry.uri] = failure["source_id"]
            elif (
                failure
                and failure["digest"] == self.digest
                and failure["stamp"] == entry.stamp
                and not (failure["error_type"] == DUPLICATE or (retry and step in ("", failure["stage"])))
            ):
                work.failed += 1
            else:
                source_id = (known["source_id"] or "") if known else ""
                work.todo.append(SourceRecord(entry.uri, source_id, entry.stamp, entry.bytes))
        return work

    def commit(self, records: list[SourceRecord]) -> None:
        """Commit finished records: clips, then sources, then failures; rows and media of earlier measurements go.

        A record whose content another source of this run brought first becomes a failure here. Raises UserError (no-space).
        """
        try:
            with self.corpus.writing():
                self._catch_up()
                for record in records:
                    self._refuse(record)
                good = [record for record in records if record.failure is None]
                bad = [record for record in records if record.failure is not None]
                if good:
                    self._commit_good(good)
                if bad:
                    self._commit_bad(bad)
                self._commits += 1
                if self._commits % MANY_FILES == 0:
                    self.tidy()
                self._seen = self._state()
        except Exception as error:  # every layer of the table library has its own
            if "No space left" not in str(error):
                raise
            raise disk_full(self.corpus) from error

    def sweep(self, is_alive: Callable[[str], bool]) -> None:
        """Remove media that a run, which is no more, cut for sources that never came to be committed."""
        for source_id in self.media.abandoned(is_alive):
            rows = (
                self.corpus.read("clips", ["clip_id"], only=("source_id", [source_id]))
                if source_id in self._uris
                else None
            )
            self.media.keep_only(source_id, rows["clip_id"].to_pylist() if rows is not None else [])

    def tidy(self) -> None:
        """Put the many small files together that many commits leave."""
        for table in TABLES:
            self.corpus.compact(table, MANY_FILES)

    def _state(self) -> Any:
        """What changes whenever anybody writes."""
        return self.corpus.versions(TABLES), self._forgotten.deletions

    def _catch_up(self) -> None:
        """Read the tables, unless nobody else has written since they were read."""
        self._forgotten = read_tombstones(self.corpus.root)
        if self._state() == self._seen:
            return
        corpus, before = self.corpus, set(self._uris)
        sources = corpus.read("sources", ["source_id", "uri", "stamp", "digest"]).to_pylist()
        failures = corpus.read(
            "failures", ["uri", "source_id", "stamp", "digest", "stage", "error_type", "attempts"]
        )
        self._failures = {row["uri"]: row for row in failures.to_pylist()}
        self._uris = {row["source_id"]: row["uri"] for row in sources}
        self._sources: dict[str, list[dict[str, Any]]] = {}
        for row in sources:
            # a file whose content was replaced has a row for each content
            self._sources.setdefault(row["uri"], []).append(row)
        self._with_clips = set(corpus.read("clips", ["source_id"])["source_id"].unique().to_pylist())
        self._mine |= self._uris.keys() - before
        self._seen = self._state()

    def _refuse(self, record: SourceRecord) -> None:
        """Fail at the last moment what must not be committed: a forgotten source, a copy, one whose results are gone."""
        first = self._uris.get(record.source_id, record.uri)
        if record.source_id and self._forgotten.contains(record.source_id):
            record.failure = Failure("fetch", FORGOTTEN, FORGOTTEN_SAYS)
        if record.failure is not None:
            return
        if first != record.uri and record.source_id in self._mine:
            record.failure = Failure("fetch", DUPLICATE, f"same content as {first}")
        elif _is_lost(record):
            record.failure = Failure(
                "measure", "lost", "what was measured of it is no longer there; run again with --retry"
            )

    def _commit_good(self, good: list[SourceRecord]) -> None:
        clips = {record.source_id: record.result(MeasuredRows).clips for record in good}
        old = self._clips_of(list(clips))
        new = {row["clip_id"] for rows in clips.values() for row in rows}
        self._put(
            "clips", [row for rows in clips.values() for row in rows], bool(self._with_clips & set(clips))
        )
        self.corpus.remove("clips", sorted(old - new))
        self.media.remove(old - new)
        self._put(
            "sources",
            [source_row(record, self.digest) for record in good],
            bool(self._uris.keys() & set(clips)),
        )
        self.corpus.remove(
            "failures", [record.uri for record in good if self._failures.pop(record.uri, None)]
        )
        self._with_clips |= set(clips)
        self._mine |= set(clips)
        self._uris |= {record.source_id: record.uri for record in good}
        for record in good:
            self.media.keep_only(record.source_id, [row["clip_id"] for row in clips[record.source_id]])

    def _commit_bad(self, bad: list[SourceRecord]) -> None:
        for record in bad:
            if record.failure and record.failure.error_type == FORGOTTEN and record.source_id:
                self._erase(record.source_id)
        standing = set(self._uris.values())
        bad = [record for record in bad if not (_says_nothing(record) and record.uri in standing)]
        lost = {
            r.source_id
            for r in bad
            if r.failure and r.failure.error_type != DUPLICATE and r.source_id not in self._mine
        }
        # a source that succeeded under other settings and fails now must not stand in both tables
        gone = sorted(lost & self._uris.keys())
        self.corpus.remove("sources", gone)
        old = self._clips_of(list(lost))
        self.corpus.remove("clips", sorted(old))
        self.media.remove(old)
        rows = []
        for record in bad:
            before = self._failures.get(record.uri)
            rows.append(failure_row(record, self.digest, (before["attempts"] if before else 0) + 1))
        self._put("failures", rows, any(record.uri in self._failures for record in bad))
        self._failures |= {row["uri"]: row for row in rows}
        for source_id in gone:
            del self._uris[source_id]
        self._with_clips -= lost
        for source_id in lost - {""}:
            self.media.keep_only(source_id, [])

    def _without_media(self) -> set[str]:
        """Sources of which a clip's file is not where it belongs."""
        clips = self.corpus.read("clips", ["clip_id", "source_id", "has_audio"])
        names, sources = clips["clip_id"].to_pylist(), clips["source_id"].to_pylist()
        lacking = self.media.lacking(
            zip(names, [sound != 0 for sound in clips["has_audio"].to_pylist()], strict=True)
        )
        return {source for name, source in zip(names, sources, strict=True) if name in lacking}

    def _erase(self, source_id: str) -> None:
        """Nothing stays of a forgotten content but the clips of others in it, whatever was measured of it meanwhile."""
        self.media.keep_only(source_id, self._clips_of([source_id]))
        Results(self.corpus.root).discard(source_id)

    def _put(self, table: str, rows: list[dict[str, Any]], replacing: bool) -> None:
        """Rows whose keys are new are appended, which costs the same however large the table is."""
        if replacing:
            self.corpus.upsert(table, rows)
        else:
            self.corpus.append(table, rows)

    def _clips_of(self, source_ids: list[str]) -> set[str]:
        known = [source_id for source_id in source_ids if source_id in self._with_clips]
        return (
            set(self.corpus.read("clips", ["clip_id"], only=("source_id", known))["clip_id"].to_pylist())
            if known
            else set()
        )


def _says_nothing(record: SourceRecord) -> bool:
    """Whether a failure says nothing of what was measured under other settings: a row of its own stays."""
    return record.failure is not None and record.failure.error_type in (*OUT_OF_REACH, FORGOTTEN)


def _is_lost(record: SourceRecord) -> bool:
    found: MeasuredRows | None = record.result(MeasuredRows)
    return found is None


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


def failure_row(record: SourceRecord, digest: str, attempts: int) -> dict[str, Any]:
    """The row of the failures table."""
    assert record.failure is not None
    return {
        "uri": record.uri,
        **vars(record.failure),
        "attempts": attempts,
        "source_id": record.source_id,
        "stamp": record.stamp,
        "digest": digest,
    }


def disk_full(corpus: Corpus) -> UserError:
    return UserError(
        "the disk is full", where=corpus.root, hint="free some space and run again", kind="no-space"
    )
