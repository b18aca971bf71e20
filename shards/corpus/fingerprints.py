"""Format of the fingerprint columns of the clips table, which ingest writes and duplicate search compares.

`video_hash`: 4 hashes of motion per second. Hash k belongs to time k / 4 s of the source. Its 63 bits are the
signs of the lowest DCT frequencies of the change between frames around that time, lowest first; 0 if nothing
moves. `sound_hash`: chromaprint's 32-bit items, one per 0.124 s from the start of the clip. `text_hash`:
64-bit simhash of the words.
"""

from __future__ import annotations

VIDEO_HASH_HZ = 4
"""Video hashes per second. Hashes at most 1/8 s apart differ in 7 to 11 bits only."""

VIDEO_HASH_EDGE_S = 0.5
"""A video hash covers this time before and after it. A clip keeps the hashes that cover only the clip."""

SOUND_ITEM_S = 1365 / 11025
"""Seconds between two items of `sound_hash` (chromaprint: a third of 4096 samples at 11,025 Hz)."""

SOUND_ITEM_REACH_S = 2.7
"""Seconds of audio that one item covers: 16 frames and their smoothing."""

FREQUENCIES: tuple[tuple[int, int], ...] = tuple(
    sorted(((v, u) for v in range(8) for u in range(8) if v or u), key=lambda vu: (vu[0] + vu[1], vu[0]))
)
"""(vertical, horizontal) frequency of each of the 63 bits of a video hash, lowest bit first."""

MIRRORED = sum(1 << bit for bit, (_, u) in enumerate(FREQUENCIES) if u % 2)
"""Bits of odd horizontal frequencies. `hash ^ MIRRORED` is the hash of the horizontally mirrored video."""
