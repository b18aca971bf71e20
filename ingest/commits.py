"""From finished records to committed rows: the one place where ingest writes tables.

Order is the safety: a source's media files are in place before its clips are committed, its clips before its own row. The
source row is the proof of done; whatever is missing behind it is made again by the next run, under the same names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ingest.records import SourceRecord, Span
from shards.corpus import Corpus


def commit(corpus: Corpus, records: list[SourceRecord], digest: str) -> None:
    """Commit finished records: clips, then sources, then failures; rows and media of earlier measurements go."""
    good = [record for record in records if record.failure is None]
    bad = [record for record in records if record.failure is not None]
    if good:
        old = _clips_of(corpus, (record.source_id for record in good))
        corpus.upsert("clips", [row for record in good for row in record.clips])
        _discard(corpus, old - {row["clip_id"] for record in good for row in record.clips})
        corpus.upsert("sources", [source_row(record, digest) for record in good])
        corpus.remove("failures", [record.uri for record in good])
    if bad:
        # a source that succeeded under other settings and fails now must not stand in both tables
        corpus.remove("sources", [record.source_id for record in bad])
        _discard(corpus, _clips_of(corpus, (record.source_id for record in bad)))
        attempts = _attempts(corpus)
        corpus.upsert("failures", [failure_row(record, digest, attempts.get(record.uri, 0) + 1) for record in bad])


def source_row(record: SourceRecord, digest: str) -> dict[str, Any]:
    """The row of the sources table."""
    assert record.probe is not None
    return {
        "source_id": record.source_id,
        "uri": record.uri,
        **vars(record.probe),
        "error": "",
        "turns": [_span_row(turn) for turn in record.turns],
        "shots": [_span_row(shot) for shot in record.shots],
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
        "digest": digest,
    }


def _span_row(span: Span) -> dict[str, Any]:
    return {"label": span.label, "start_s": float(span.start_s), "end_s": float(span.end_s)}


def _clips_of(corpus: Corpus, source_ids: Iterable[str]) -> set[str]:
    table = corpus.read("clips", ["clip_id", "source_id"])
    wanted = set(source_ids)
    pairs = zip(table["clip_id"].to_pylist(), table["source_id"].to_pylist(), strict=True)
    return {clip for clip, source in pairs if source in wanted}


def _discard(corpus: Corpus, clips: set[str]) -> None:
    corpus.remove("clips", sorted(clips))
    for clip in clips:
        for name in ("mp4", "flac", "face.npz"):
            corpus.media_path(clip, name).unlink(missing_ok=True)


def _attempts(corpus: Corpus) -> dict[str, int]:
    table = corpus.read("failures", ["uri", "attempts"])
    return dict(zip(table["uri"].to_pylist(), table["attempts"].to_pylist(), strict=True))
