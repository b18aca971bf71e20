"""A source's sound as a file: raw int16 at 16 kHz, mono, sample 0 at the container's time 0.

Goes in: the file that `media.decode_sound` wrote. Comes out: spans of it. Steps read the stretch they need, so that a
source of many hours costs none of them more memory than a piece of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uniavgen.ingest.records import AUDIO_RATE


@dataclass(frozen=True)
class Sound:
    """`samples` int16 samples in the raw file `path`."""

    path: str
    samples: int

    @property
    def duration_s(self) -> float:
        return self.samples / AUDIO_RATE

    def span(self, start_s: float, end_s: float) -> np.ndarray:
        """int16 [round((end_s - start_s) * 16000)] between two times, silence where they lie outside of the sound."""
        first, last = round(start_s * AUDIO_RATE), round(end_s * AUDIO_RATE)
        low, high = min(max(0, first), self.samples), min(max(0, last), self.samples)
        inside = (
            np.fromfile(self.path, np.int16, count=high - low, offset=low * 2)
            if high > low
            else np.zeros(0, np.int16)
        )
        before = min(max(0, -first), last - first)
        return np.pad(inside, (before, last - first - before - len(inside)))
