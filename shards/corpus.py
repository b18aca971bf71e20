"""The corpus folder: transactional tables (Delta Lake), queried with DuckDB, and where media files stand.

    corpus.json              schema version
    sources/ clips/ failures/ decisions/     Delta tables; a row is the proof that its work is done
    media/<2 hex>/<clip_id>.{mp4,flac,face.npz}
    shards/  report/         made from the tables

Ids come from content, so the same input gives the same rows; `upsert` makes writing them twice harmless.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

CORPUS_VERSION = 1


@dataclass(frozen=True)
class Signal:
    """One measurement of a clip: its unit and the sentence that explains it to people."""

    unit: str
    text: str


SIGNALS: dict[str, Signal] = {
    "has_audio": Signal("0 or 1", "whether the source has a sound track"),
    "duration_s": Signal("s", "length of the clip"),
    "width_px": Signal("px", "width of the source picture"),
    "height_px": Signal("px", "height of the source picture"),
    "fps": Signal("frames/s", "frame rate of the source"),
    "speech_ratio": Signal("0..1", "share of the clip in which its speaker speaks"),
    "overlap_ratio": Signal("0..1", "share of the clip in which another speaker speaks too"),
    "speaker_count": Signal("speakers", "speakers heard within the clip"),
    "word_count": Signal("words", "whole words said in the clip"),
    "words_per_s": Signal("words/s", "speaking rate"),
    "word_score": Signal("0..1", "mean confidence of the words"),
    "language_probability": Signal("0..1", "confidence that the language is the one named"),
    "asr_log_probability": Signal("nats", "mean log-probability of the transcript's tokens"),
    "no_speech_probability": Signal("0..1", "Whisper's probability that nothing is said"),
    "asr_compression_ratio": Signal("ratio", "text size over its compressed size; a high one betrays a loop"),
    "face_coverage": Signal("0..1", "share of analysed frames with at least one face"),
    "face_count": Signal("faces", "largest number of faces seen together in a fifth of the frames or more"),
    "face_height_px": Signal("px", "median height of the main face in the source picture"),
    "face_yaw_deg": Signal("deg", "median absolute yaw of the main face"),
    "face_steadiness": Signal("0..1", "1 minus the face's movement between frames over its own size"),
    "face_score": Signal("0..1", "median confidence of the face detector in the main face"),
    "mouth_motion": Signal("1/s", "mean absolute change of the mouth opening over the face height"),
    "sync_offset_ms": Signal("ms", "how late the sound is against the lips; positive: sound late"),
    "sync_confidence": Signal(
        "0..1", "0.5: the lips fit the sound better than 95 % of unrelated sounds; below, the offset is unknown"
    ),
    "snr_db": Signal("dB", "speech level over background level"),
    "loudness_db": Signal("dBFS", "RMS level of the sound"),
    "clipping_ratio": Signal("0..1", "share of audio samples at full scale"),
    "luma": Signal("0..255", "mean brightness"),
    "sharpness": Signal("variance", "variance of the Laplacian of the main face, scaled to 128 px of height"),
    "black_ratio": Signal("0..1", "share of frames that are nearly black"),
    "frozen_ratio": Signal("0..1", "share of frames equal to the one before"),
}
"""Every signal column of the clips table; ingest fills them, policies judge them, the report shows them."""


def _schemas() -> dict[str, pa.Schema]:
    import pyarrow as pa

    text, number, flag, count = pa.string(), pa.float64(), pa.bool_(), pa.int64()
    word = pa.struct([("text", text), ("start_s", number), ("end_s", number), ("score", number)])
    span = pa.struct([("label", text), ("start_s", number), ("end_s", number)])
    source = [("source_id", text), ("uri", text), ("duration_s", number), ("width", count), ("height", count)]
    source += [("fps", number), ("video_codec", text), ("audio_codec", text), ("has_audio", flag), ("error", text)]
    source += [("turns", pa.list_(span)), ("shots", pa.list_(span)), ("step_seconds", pa.map_(text, number)), ("digest", text)]
    clip = [("clip_id", text), ("source_id", text), ("start_s", number), ("end_s", number), ("speaker", text)]
    clip += [("voice", pa.list_(pa.float32())), ("transcript", text), ("words", pa.list_(word)), ("language", text)]
    clip += [("versions", pa.map_(text, text))] + [(name, number) for name in SIGNALS]
    failure = [("uri", text), ("stage", text), ("error_type", text), ("message", text), ("attempts", count)]
    failure += [("source_id", text), ("digest", text)]
    decision = [("clip_id", text), ("kept", flag), ("reason", text), ("failed_rules", pa.list_(text))]
    decision += [("policy_digest", text), ("split", text)]
    return {
        "sources": pa.schema(source),
        "clips": pa.schema(clip),
        "failures": pa.schema(failure),
        "decisions": pa.schema(decision),
    }


def schema(table: str) -> pa.Schema:
    """Columns and types of a table, by name."""
    return _schemas()[table]


KEYS = {"sources": "source_id", "clips": "clip_id", "failures": "uri", "decisions": "clip_id"}


def clip_id(source_id: str, start_s: float, end_s: float) -> str:
    """Identity of a clip: a hash of its source and its milliseconds, so that a second run names it alike."""
    span = f"{source_id}:{round(start_s * 1000)}:{round(end_s * 1000)}"
    return hashlib.sha256(span.encode()).hexdigest()[:20]


class Corpus:
    """The tables and media of one corpus folder. Reading a table that was never written gives an empty one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def create(root: str | Path) -> Corpus:
        """Open a corpus, making the folder where there is none. Raises UserError for another version or no rights."""
        path = Path(root).absolute()
        marker = path / "corpus.json"
        if marker.exists():
            return Corpus.open(path)
        if path.exists() and not path.is_dir():
            raise UserError("the corpus path is a file", where=path, do="name a folder")
        if path.is_dir() and any(path.iterdir()):
            raise UserError("the folder is not empty and is no corpus", where=path, do="name a new or empty folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            part = path / ".corpus.json.part"
            part.write_text(json.dumps({"corpus_version": CORPUS_VERSION}) + "\n")
            os.replace(part, marker)
        except OSError as error:
            raise UserError(
                f"the corpus cannot be written: {error.strerror}", where=path, do="check rights and space"
            ) from error
        return Corpus(path)

    @staticmethod
    def open(root: str | Path) -> Corpus:
        """Open a corpus that exists. Raises UserError where there is none or it is from another version."""
        path = Path(root).absolute()
        marker = path / "corpus.json"
        if not marker.is_file():
            raise UserError("no corpus here", where=path, do=f"make one: uniavgen ingest VIDEOS --corpus {root}")
        try:
            version = json.loads(marker.read_text())["corpus_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError("corpus.json is damaged", where=marker, do="restore it or ingest anew") from error
        if version != CORPUS_VERSION:
            raise UserError(
                f"the corpus has version {version}, this program reads {CORPUS_VERSION}",
                where=path,
                do="use the matching release of uniavgen, or ingest into a new folder",
                kind="wrong-version",
            )
        return Corpus(path)

    def upsert(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Commit rows in one transaction, replacing those with the same key; returns how many were given."""
        import pyarrow as pa
        from deltalake import DeltaTable, write_deltalake

        data = pa.Table.from_pylist([dict(row) for row in rows], schema=_schemas()[table])
        if not len(data):
            return 0
        path = str(self.root / table)
        if not DeltaTable.is_deltatable(path):
            write_deltalake(path, data)
            return len(data)
        key = KEYS[table]
        merge = DeltaTable(path).merge(data, predicate=f"t.{key} = s.{key}", source_alias="s", target_alias="t")
        merge.when_matched_update_all().when_not_matched_insert_all().execute()
        return len(data)

    def replace(self, table: str, data: pa.Table) -> None:
        """Commit `data` as the whole content of a table, in one transaction."""
        from deltalake import write_deltalake

        write_deltalake(str(self.root / table), data.cast(_schemas()[table]), mode="overwrite")

    def remove(self, table: str, keys: Iterable[str]) -> None:
        """Delete the rows with these keys, in one transaction; keys that are not there are ignored."""
        from deltalake import DeltaTable

        listed = ", ".join("'" + key.replace("'", "''") + "'" for key in keys)
        path = str(self.root / table)
        if listed and DeltaTable.is_deltatable(path):
            DeltaTable(path).delete(f"{KEYS[table]} IN ({listed})")

    def read(self, table: str, columns: list[str] | None = None) -> pa.Table:
        """A whole table (or some columns of it) as Arrow; empty, with the right schema, where none was written."""
        from deltalake import DeltaTable

        schema = _schemas()[table]
        path = str(self.root / table)
        if not DeltaTable.is_deltatable(path):
            empty = schema.empty_table()
            return empty.select(columns) if columns else empty
        return DeltaTable(path).to_pyarrow_table(columns=columns)

    def query(self, sql: str, **tables: pa.Table) -> pa.Table:
        """Run SQL over the corpus tables (`sources`, `clips`, `failures`, `decisions`) and any Arrow `tables` given."""
        import duckdb

        with duckdb.connect() as connection:
            for name in KEYS:
                if name not in tables and name in sql:
                    connection.register(name, self.read(name))
            for name, table in tables.items():
                connection.register(name, table)
            return connection.sql(sql).to_arrow_table()

    def versions(self) -> dict[str, int]:
        """Version of every table; -1 where it was never written."""
        from deltalake import DeltaTable

        paths = {name: str(self.root / name) for name in KEYS}
        return {n: DeltaTable(p).version() if DeltaTable.is_deltatable(p) else -1 for n, p in paths.items()}

    def media_path(self, clip: str, extension: str) -> Path:
        """Where a clip's file stands: `extension` is `mp4`, `flac` or `face.npz`."""
        return self.root / "media" / clip[:2] / f"{clip}.{extension}"
