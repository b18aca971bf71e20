"""Fingerprints: numbers by which copies of a clip are known again after a re-encode, a re-cut, a mirror or a new size.

Goes in: pictures of the 16 fps grid, int16 sound, a transcript. Comes out: lists of int64 for the clips table, whose meaning
is told in `shards/hashes.py`. A hash of still pictures would be the same for every video of one studio, so the video hash
looks at what moves.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import deque
from contextlib import suppress
from functools import lru_cache

import numpy as np

from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.records import AUDIO_RATE
from uniavgen.shards.corpus.fingerprints import (
    FREQUENCIES,
    SOUND_ITEM_REACH_S,
    VIDEO_HASH_EDGE_S,
    VIDEO_HASH_HZ,
)
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS

STEP = VIDEO_FPS // VIDEO_HASH_HZ
"""Frames from one video hash to the next."""

STILL = 1.0
"""Mean size of the change's 63 coefficients (32 x 32 grey levels) below which nothing moves; our choice: codecs' noise
stays under 0.6 on development footage, the calmest talking head lies at 2.2."""

MIN_SOUND_S = 4.0
"""A shorter clip's acoustic fingerprint takes in the sound that follows, up to this length; our choice."""

SILENT = 33
"""Peak of int16 sound (-60 dBFS) below which it has no fingerprint: silence is no copy of silence."""

SHINGLE = 3
"""Words that stand together in a text hash; our choice."""

_CHROMAPRINT_SECONDS = 60.0


class VideoHasher:
    """The video hashes of a source, from its pictures one after another. Holds a second of them at 32 x 32 pixels."""

    def __init__(self) -> None:
        self._open = np.zeros((32, 32), np.float32)
        self._frames = 0
        self._blocks: deque[np.ndarray] = deque(maxlen=4)
        self._hashes: list[int] = []

    def add(self, picture: np.ndarray) -> None:
        """The next picture of the 16 fps grid: uint8 [H, W, 3] RGB."""
        import cv2

        self._open = self._open + cv2.cvtColor(
            cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY
        )
        self._frames += 1
        if self._frames % STEP == 0:
            self._blocks.append(self._open)
            self._open = np.zeros((32, 32), np.float32)
            if len(self._blocks) == 4:
                before, after = self._blocks[0] + self._blocks[1], self._blocks[2] + self._blocks[3]
                self._hashes.append(change_hash((after - before) / (2 * STEP)))

    def hashes(self) -> np.ndarray:
        """int64 [n]: hash k stands at k / 4 s; 0 where nothing moves, and in the first and last half second."""
        edge = [0, 0]
        return np.array([*edge, *self._hashes] if self._hashes else [], np.int64)


def change_hash(change: np.ndarray) -> int:
    """63-bit hash of a picture's change, float [32, 32] grey levels: the signs of its lowest frequencies; 0 where it is still.

    Source: the perceptual hash of Zauner (2010), with signs instead of a comparison with the median, so that a mirrored
    picture has a known hash.
    """
    import cv2

    spectrum = cv2.dct(np.asarray(change, np.float32))
    lowest = np.array([spectrum[v, u] for v, u in FREQUENCIES])
    if np.abs(lowest).mean() < STILL:
        return 0
    return sum(1 << bit for bit in np.flatnonzero(lowest > 0).tolist())


def video_hash(hashes: np.ndarray, start_s: float, end_s: float) -> list[int]:
    """A clip's share of its source's hashes (`VideoHasher.hashes`): those that look at nothing but [start_s, end_s]."""
    first = int(np.ceil(round((start_s + VIDEO_HASH_EDGE_S) * VIDEO_HASH_HZ, 6)))
    last = int(np.floor(round((end_s - VIDEO_HASH_EDGE_S) * VIDEO_HASH_HZ, 6)))
    found: list[int] = hashes[first : max(first, last + 1)].tolist()
    return found


def sound_span(start_s: float, end_s: float) -> tuple[float, float]:
    """The stretch of a source's sound that a clip's acoustic fingerprint is made of: the clip, at least 4 s from its start."""
    return start_s, max(end_s, start_s + MIN_SOUND_S)


@lru_cache(maxsize=1)
def fingerprinting_ffmpeg() -> str | None:
    """An ffmpeg that has chromaprint built in: the one on PATH, else imageio-ffmpeg's; None where neither has."""
    candidates = [ffmpeg_path()]
    with suppress(ImportError, RuntimeError):
        import imageio_ffmpeg

        candidates.append(str(imageio_ffmpeg.get_ffmpeg_exe()))
    for ffmpeg in candidates:
        asked = [ffmpeg, "-hide_banner", "-h", "muxer=chromaprint"]
        if (
            b"Muxer chromaprint"
            in subprocess.run(asked, capture_output=True, timeout=_CHROMAPRINT_SECONDS).stdout
        ):
            return ffmpeg
    return None


def sound_hash(pcm: np.ndarray) -> list[int] | None:
    """Chromaprint's items of int16 sound [n] at 16 kHz mono, 0 to 2^32 - 1; none for silence or for less than 2.7 s.

    None where no ffmpeg of this machine has chromaprint. Raises UserError (fingerprint-failed) where it gives up.
    """
    ffmpeg = fingerprinting_ffmpeg()
    if ffmpeg is None:
        return None
    if len(pcm) < SOUND_ITEM_REACH_S * AUDIO_RATE or np.abs(pcm.astype(np.int32)).max() < SILENT:
        return []
    command = [
        ffmpeg,
        "-hide_banner",
        "-loglevel",
        "error",
        "-f",
        "s16le",
        "-ar",
        str(AUDIO_RATE),
        "-ac",
        "1",
    ]
    command += ["-i", "pipe:", "-f", "chromaprint", "-fp_format", "raw", "pipe:"]
    data = np.ascontiguousarray(pcm, "<i2").tobytes()
    done = subprocess.run(command, input=data, capture_output=True, timeout=_CHROMAPRINT_SECONDS)
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[:1]
        raise UserError(
            f"no acoustic fingerprint: {' '.join(reason)[:200]}", where=ffmpeg, kind="fingerprint-failed"
        )
    found: list[int] = np.frombuffer(done.stdout, "<u4").astype(np.int64).tolist()
    return found


def text_hash(transcript: str) -> int | None:
    """64-bit simhash (Charikar 2002) of a transcript's three-word shingles, signed; None without words.

    Case, punctuation and spaces do not count. A changed word of twenty moves about 10 bits, another text about 32.
    """
    words = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", transcript.casefold())
    if not words:
        return None
    shingles = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
    digests = b"".join(
        hashlib.blake2b(shingle.encode(), digest_size=8).digest() for shingle in sorted(shingles)
    )
    votes = np.unpackbits(np.frombuffer(digests, np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    return int(np.packbits(votes > 0.5).view(">i8")[0])
