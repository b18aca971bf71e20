"""Columns of the corpus tables. A row is the proof that its work is done. Null means not measured."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from uniavgen.shards.corpus.signals import SIGNALS

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = {
    "sources": "source_id",
    "clips": "clip_id",
    "failures": "uri",
    "decisions": "clip_id",
    "captions": "caption_id",
}
"""The tables, each with its key column."""

COLUMNS: dict[str, dict[str, str]] = {
    "sources": {
        "source_id": "text",  # hash of the content
        "uri": "text",
        "duration_s": "number",
        "width": "integer",
        "height": "integer",
        "fps": "number",
        "video_codec": "text",
        "audio_codec": "text",
        "has_audio": "flag",
        "error": "text",
        "turns": "spans",  # of speakers
        "shots": "spans",
        "step_seconds": "number by name",  # time that each ingest step took
        "digest": "text",  # of the ingest settings
        "words": "spoken words",
        "tracks": "face tracks",
        "bytes": "integer",
        "stamp": "text",  # changes with the file (size and modification time, or ETag)
        "streams": "media streams",  # every video, audio and subtitle stream of the file
        "video_stream": "integer",  # index of the stream that was measured and cut
        "audio_stream": "integer",  # -1: none
        "transfer": "text",  # of high dynamic range: smpte2084 (PQ), arib-std-b67 (HLG); else empty
        "mono": "text",  # how channels became one: mix, left, right, center, difference
        "language": "text",  # that most of the speech is in
        "passages": "passages",  # what was transcribed at once, with its speaker and language
    },
    "clips": {
        "clip_id": "text",  # see `clip_id` in tables.py
        "source_id": "text",
        "start_s": "number",
        "end_s": "number",
        "speaker": "text",  # of this source; curation finds persons across sources
        "voice": "vector",  # speaker embedding
        "transcript": "text",
        "words": "words",
        "language": "text",
        "versions": "text by name",  # of the steps and models that measured the clip
        **dict.fromkeys(SIGNALS, "number"),
        "video_hash": "integers",  # see fingerprints.py
        "sound_hash": "integers",
        "text_hash": "integer",
        "face": "vector",  # face embedding
        "sync_curve": "vector",  # fit of lips to audio at every shift, see SYNC_CURVE_STEP_MS
    },
    "failures": {
        "uri": "text",
        "stage": "text",  # the step that failed
        "error_type": "text",
        "message": "text",
        "attempts": "integer",
        "source_id": "text",
        "digest": "text",
        "stamp": "text",
    },
    "decisions": {
        "clip_id": "text",
        "kept": "flag",
        "reason": "text",  # the first rule that failed
        "failed_rules": "texts",
        "policy_digest": "text",
        "split": "text",
    },
    "captions": {
        "caption_id": "text",
        "clip_id": "text",
        "caption": "text",
        "model": "text",
        "prompt_digest": "text",
        "tokens": "integer",
        "seconds": "number",
    },
}
"""Column -> name of its type (see `_types`), in column order, by table."""


@cache
def schema(table: str) -> pa.Schema:
    """The Arrow schema of a table."""
    import pyarrow as pa

    types = _types()
    return pa.schema([(name, types[kind]) for name, kind in COLUMNS[table].items()])


def _types() -> dict[str, pa.DataType]:
    import pyarrow as pa

    text, number, flag, integer = pa.string(), pa.float64(), pa.bool_(), pa.int64()
    span = pa.struct([("label", text), ("start_s", number), ("end_s", number)])
    word = pa.struct([("text", text), ("start_s", number), ("end_s", number), ("score", number)])
    spoken_word = pa.struct([*word, ("speaker", text)])
    stream = pa.struct(
        [
            *(("index", integer), ("kind", text), ("codec", text), ("language", text), ("title", text)),
            *(("default", flag), ("roles", pa.list_(text)), ("width", integer), ("height", integer)),
            ("channels", integer),
        ]
    )
    passage = pa.struct(
        [
            *(("start_s", number), ("end_s", number), ("text", text), ("language", text)),
            *(("language_probability", number), ("speaker", text)),
        ]
    )
    track = pa.struct([("track", integer), ("start_s", number), ("end_s", number), ("height_px", number)])
    return {
        "text": text,
        "number": number,
        "flag": flag,
        "integer": integer,
        "texts": pa.list_(text),
        "integers": pa.list_(integer),
        "vector": pa.list_(pa.float32()),
        "text by name": pa.map_(text, text),
        "number by name": pa.map_(text, number),
        "spans": pa.list_(span),
        "words": pa.list_(word),
        "spoken words": pa.list_(spoken_word),
        "passages": pa.list_(passage),
        "face tracks": pa.list_(track),
        "media streams": pa.list_(stream),
    }
