"""Step `fingerprint`: numbers that stay similar when a clip is encoded again, cut, mirrored or resized.

The format of the hashes is defined in `shards.corpus.fingerprints`.
"""

from __future__ import annotations

import hashlib
import subprocess
import unicodedata
from contextlib import suppress
from functools import lru_cache

import numpy as np
import regex

from uniavgen.ingest.config import PACKAGED
from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.measures.clip_parts import clip_face
from uniavgen.ingest.models.face_embedding import clip_face_embedding
from uniavgen.ingest.records import (
    AUDIO_RATE,
    ClipFingerprints,
    FacesSeen,
    Fingerprints,
    Proposal,
    Proposals,
    SourceRecord,
    VideoHashes,
)
from uniavgen.shards.corpus.fingerprints import SOUND_ITEM_REACH_S, VIDEO_HASH_EDGE_S, VIDEO_HASH_HZ
from uniavgen.shards.errors import UserError
from uniavgen.shards.text import word_spans

MIN_SOUND_S = 4.0
"""Audio of a shorter clip is extended to this length for its acoustic fingerprint. Heuristic."""

SILENT = 33
"""Peak of int16 audio (-60 dBFS) below which it has no fingerprint: silence is no duplicate of silence."""

SHINGLE = 3
"""Consecutive words in one item of a text hash. Heuristic."""

_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+(?:['’][\p{L}\p{N}\p{M}]+)*")

_CHROMAPRINT_SECONDS = 60.0


class FingerprintStep(Step):
    """Video, audio, text and face fingerprints of each clip."""

    name = "fingerprint"
    pool = "sight"
    version = "2"
    needs = ("sound", "hash", "faces", "sync", "propose")
    result = Fingerprints

    def measure(self, record: SourceRecord) -> Fingerprints:
        clips = record.result(Proposals).clips
        return Fingerprints([self._clip(record, index, clip) for index, clip in enumerate(clips)])

    def _clip(self, record: SourceRecord, index: int, clip: Proposal) -> ClipFingerprints:
        audio = record.result(AudioFile).span(*sound_span(clip.start_s, clip.end_s))
        return ClipFingerprints(
            video_hash(record.result(VideoHashes).values, clip.start_s, clip.end_s),
            sound_hash(audio, self.config.limits.ffmpeg),
            text_hash(clip.text),
            clip_face_embedding(record.result(FacesSeen).vectors, clip_face(record, index)),
        )


def video_hash(hashes: np.ndarray, start_s: float, end_s: float) -> list[int]:
    """The hashes of a source (`VideoHasher.hashes`) that depend on frames of [start_s, end_s] only."""
    first = int(np.ceil(round((start_s + VIDEO_HASH_EDGE_S) * VIDEO_HASH_HZ, 6)))
    last = int(np.floor(round((end_s - VIDEO_HASH_EDGE_S) * VIDEO_HASH_HZ, 6)))
    clip_hashes: list[int] = hashes[first : max(first, last + 1)].tolist()
    return clip_hashes


def sound_span(start_s: float, end_s: float) -> tuple[float, float]:
    """Start and end of the audio that is fingerprinted for a clip: at least 4 s from its start."""
    return start_s, max(end_s, start_s + MIN_SOUND_S)


@lru_cache
def fingerprinting_ffmpeg(choice: str = PACKAGED) -> str | None:
    """An ffmpeg with chromaprint: the configured one, else the packaged one; None if neither has it."""
    for each in dict.fromkeys((choice, PACKAGED)):
        with suppress(UserError):  # one that is not there has no chromaprint
            ffmpeg = ffmpeg_path(each)
            command = [ffmpeg, "-hide_banner", "-h", "muxer=chromaprint"]
            done = subprocess.run(command, capture_output=True, timeout=_CHROMAPRINT_SECONDS)
            if b"Muxer chromaprint" in done.stdout:
                return ffmpeg
    return None


def sound_hash(pcm: np.ndarray, ffmpeg_choice: str = PACKAGED) -> list[int] | None:
    """Chromaprint's items of int16 audio [n] at 16 kHz mono, 0 to 2^32 - 1; empty for silence or below 2.7 s.

    None if no ffmpeg of this machine has chromaprint. Raises UserError (fingerprint-failed) if chromaprint
    fails.
    """
    ffmpeg = fingerprinting_ffmpeg(ffmpeg_choice)
    if ffmpeg is None:
        return None
    if len(pcm) < SOUND_ITEM_REACH_S * AUDIO_RATE or np.abs(pcm.astype(np.int32)).max() < SILENT:
        return []
    raw = ["-f", "s16le", "-ar", str(AUDIO_RATE), "-ac", "1", "-i", "pipe:"]
    fingerprint = ["-f", "chromaprint", "-fp_format", "raw", "pipe:"]
    command = [ffmpeg, "-hide_banner", "-loglevel", "error", *raw, *fingerprint]
    data = np.ascontiguousarray(pcm, "<i2").tobytes()
    done = subprocess.run(command, input=data, capture_output=True, timeout=_CHROMAPRINT_SECONDS)
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[:1]
        raise UserError(
            f"no acoustic fingerprint: {' '.join(reason)[:200]}", where=ffmpeg, kind="fingerprint-failed"
        )
    items: list[int] = np.frombuffer(done.stdout, "<u4").astype(np.int64).tolist()
    return items


def text_hash(transcript: str) -> int | None:
    """64-bit simhash (Charikar 2002) of a transcript's three-word shingles, signed; None without words.

    Case, punctuation and spaces do not count. One changed word of twenty changes about 10 bits, another text
    about 32. In scripts without spaces each character counts as a word.
    """
    words = [
        word
        for start, end in word_spans(transcript)
        for word in _WORD.findall(unicodedata.normalize("NFC", transcript[start:end].casefold()))
    ]
    if not words:
        return None
    shingles = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
    digests = b"".join(
        hashlib.blake2b(shingle.encode(), digest_size=8).digest() for shingle in sorted(shingles)
    )
    votes = np.unpackbits(np.frombuffer(digests, np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    return int(np.packbits(votes > 0.5).view(">i8")[0])
