"""Choose the video and the audio stream of a file by their flags and titles.

Pure functions on `StreamInfo`. A stream's index counts from 0 among all streams of the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from uniavgen.ingest.records import StreamInfo
from uniavgen.shards.errors import UserError

SECONDARY_ROLES = frozenset(
    {
        *("comment", "visual_impaired", "hearing_impaired", "descriptions", "dub"),
        *("karaoke", "lyrics", "clean_effects"),
        *("non_diegetic", "dependent", "attached_pic", "timed_thumbnails", "still_image", "metadata"),
    }
)
"""Dispositions (libavformat's names) of streams that only accompany the main one."""

SECONDARY_TITLES = re.compile(r"(?i:com+ent|kom+ent|des[ck]ri|impaired|karaoke)|\bAD\b")
"""Titles of such streams in files whose muxer wrote no disposition, in several languages. Heuristic."""

TINY = 0.25
"""A video with less than this share of the largest one's pixels is a preview. Heuristic."""

LANGUAGES = {
    "ar": "ara",
    "bg": "bul",
    "cs": "ces cze",
    "da": "dan",
    "de": "deu ger",
    "el": "ell gre",
    "en": "eng",
    "es": "spa",
    "et": "est",
    "fa": "fas per",
    "fi": "fin",
    "fr": "fra fre",
    "he": "heb",
    "hi": "hin",
    "hr": "hrv",
    "hu": "hun",
    "id": "ind",
    "it": "ita",
    "ja": "jpn",
    "ko": "kor",
    "lt": "lit",
    "lv": "lav",
    "ms": "msa may",
    "nl": "nld dut",
    "no": "nor nob nno",
    "pl": "pol",
    "pt": "por",
    "ro": "ron rum",
    "ru": "rus",
    "sk": "slk slo",
    "sl": "slv",
    "sr": "srp",
    "sv": "swe",
    "ta": "tam",
    "te": "tel",
    "th": "tha",
    "tr": "tur",
    "uk": "ukr",
    "ur": "urd",
    "vi": "vie",
    "zh": "zho chi cmn yue",
}
"""ISO 639-1 code -> the ISO 639-2 codes that containers use."""


def is_secondary(stream: StreamInfo) -> bool:
    """Whether a stream only accompanies the main one: commentary, audio description, cover picture."""
    return bool(SECONDARY_ROLES & set(stream.roles)) or bool(SECONDARY_TITLES.search(stream.title))


def choose_video(streams: Sequence[StreamInfo]) -> StreamInfo | None:
    """The main video stream: not secondary, not tiny, flagged as default, largest, first in the file."""
    videos = [stream for stream in streams if stream.kind == "video" and stream.codec]
    main = [stream for stream in videos if not is_secondary(stream)] or videos
    largest = max((_pixels(stream) for stream in main), default=0)
    return min(
        main,
        key=lambda stream: (
            _pixels(stream) < TINY * largest,
            not stream.default,
            -_pixels(stream),
            stream.index,
        ),
        default=None,
    )


def rank_audio(
    streams: Sequence[StreamInfo], wanted: str = "", related: int | None = None
) -> list[StreamInfo]:
    """Audio streams, best first: not secondary, in the video's programme, flagged as default, first in file.

    `related` is a stream of the video's programme, in a file with several. With `wanted` the list has only
    the streams that it names: a number from 0 among the audio streams, or a language (`en`, `eng`). Raises
    UserError (no-audio-track) where it names none.
    """
    audios = [stream for stream in streams if stream.kind == "audio" and stream.codec]
    if wanted and audios:
        named = [audio for position, audio in enumerate(audios) if _is_named(audio, position, wanted)]
        if not named:
            tracks = ", ".join(f"{n}: {audio.language or 'unknown'}" for n, audio in enumerate(audios))
            raise UserError(
                f"no audio track {wanted!r}; the file has {tracks}",
                hint="change ingest.sources.audio_track",
                kind="no-audio-track",
            )
        audios = named
    return sorted(
        audios,
        key=lambda stream: (
            is_secondary(stream),
            related is not None and stream.index != related,
            not stream.default,
            stream.index,
        ),
    )


def _pixels(stream: StreamInfo) -> int:
    return stream.width * stream.height


def _is_named(stream: StreamInfo, position: int, wanted: str) -> bool:
    if wanted.isdigit():
        return position == int(wanted)
    return bool(_codes(wanted) & _codes(stream.language))


def _codes(language: str) -> set[str]:
    """All spellings of a language code; the region of `pt-BR` is dropped."""
    code = re.split(r"[-_]", language.lower())[0]
    for short, longer in LANGUAGES.items():
        codes = {short, *longer.split()}
        if code in codes:
            return codes
    return {code} - {"", "und"}
