"""What the fingerprints in the clips table are made of, so that those who write them and those who compare them agree.

`video_hash`: what moves, four times a second. Hash k of a source stands at k / 4 s of its own clock; its 63 bits are the
signs of the lowest frequencies (DCT) of the picture's change around that moment, lowest first; 0 where nothing moves.
`sound_hash`: chromaprint's 32-bit items, one each 0.124 s from the clip's start. `text_hash`: 64-bit simhash of its words.
"""

from __future__ import annotations

VIDEO_HASH_HZ = 4
"""Hashes per second of a video: neighbours at most an eighth of a second apart still look alike (7 to 11 bits)."""

VIDEO_HASH_EDGE_S = 0.5
"""A hash looks this far to either side; a clip keeps those that look at nothing but the clip."""

SOUND_ITEM_S = 1365 / 11025
"""Seconds between two items of an acoustic fingerprint (chromaprint: a third of 4096 samples at 11,025 Hz)."""

SOUND_ITEM_REACH_S = 2.7
"""Sound that one item looks at: 16 frames and their smoothing."""

FREQUENCIES: tuple[tuple[int, int], ...] = tuple(
    sorted(((v, u) for v in range(8) for u in range(8) if v or u), key=lambda vu: (vu[0] + vu[1], vu[0]))
)
"""Vertical and horizontal frequency of each bit of a video hash, lowest bit first: 63 of them."""

MIRRORED = sum(1 << bit for bit, (_, u) in enumerate(FREQUENCIES) if u % 2)
"""Bits that change when a picture is mirrored left to right: odd horizontal frequencies. hash ^ MIRRORED is the mirror's."""
