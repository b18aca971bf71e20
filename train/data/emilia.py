"""Windows of Emilia's utterances for the audio stage: whole ones with their whole text, and a reference of the same voice.

In: an EmiliaStream, a DataConfig, codecs. Out: crops without pictures, as `train.data` makes them of clips. The paper does
not say how utterances are brought to one length. Ours: one that fits the window begins with it and is followed by silence,
since there are no word times to cut a text by; a longer one is left out, or, with `longer: crop`, a random part of it is taken
whose text is estimated as if it were spoken at an even pace. The reference sound is a random part of another utterance by the
same speaker, of its own utterance where there is no other.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from uniavgen.shards.emilia.stream import EmiliaStream
from uniavgen.shards.timing import VIDEO_FPS, samples_for_frames
from uniavgen.train.batch import LatentBatch
from uniavgen.train.codec.registry import Codecs
from uniavgen.train.config import DataConfig
from uniavgen.train.data.batches import Crop, CropEncoder


class EmiliaWindows:
    """`train.data.Windows` of utterances, encoded on line."""

    def __init__(self, stream: EmiliaStream, config: DataConfig, codecs: Codecs) -> None:
        self.stream, self.config = stream, config
        self.encoder = CropEncoder(config, codecs)

    def take(self, position: int, random: np.random.Generator) -> Crop:
        """See Windows. An utterance or reference that cannot be read raises UserError of kind `damaged-sample`."""
        utterance = self.stream.sample_at(position)
        other = self.stream.other_by_speaker(position, random)
        start, speech = 0, utterance.meta.text.strip()
        if utterance.meta.duration > self.config.frames / VIDEO_FPS:
            start = int(random.integers(max(1, _whole_frames(utterance.waveform) - self.config.frames + 1)))
            speech = text_inside(speech, utterance.meta.duration, start, self.config.frames)
        source = (other or utterance).waveform
        return Crop(
            key=utterance.key,
            start=start,
            waveform=padded(utterance.waveform, start, self.config.frames),
            reference_waveform=reference_of(source, self.config.reference_frames, random),
            speech=speech,
            caption="",
            reference_inside=other is None,
        )

    def batch_of(self, items: list[Any]) -> LatentBatch:
        """See Windows."""
        return self.encoder.encode(items)


def padded(waveform: np.ndarray, start: int, frames: int) -> np.ndarray:
    """Sound of `frames` pixel frames from frame `start` on: float32 [1500 frames], silence after the utterance's end."""
    part = waveform[samples_for_frames(start) :][: samples_for_frames(frames)]
    return np.pad(part, (0, samples_for_frames(frames) - len(part)))


def reference_of(waveform: np.ndarray, frames: int, random: np.random.Generator) -> np.ndarray:
    """A random part of `frames` pixel frames: float32 [1500 frames]; a shorter sound is said again until it fills its place."""
    start = int(random.integers(max(1, _whole_frames(waveform) - frames + 1)))
    return np.resize(
        waveform[samples_for_frames(start) :][: samples_for_frames(frames)], samples_for_frames(frames)
    )


def text_inside(text: str, seconds: float, start: int, frames: int) -> str:
    """The words whose middle lies within the window of pixel frames, were the characters of the text evenly spread over its
    seconds; of a text without spaces, the characters."""
    first, last = (edge / VIDEO_FPS / seconds * len(text) for edge in (start, start + frames))
    if not re.search(r"\s", text):
        return text[round(first) : round(last)]
    words = re.finditer(r"\S+", text)
    return " ".join(word.group() for word in words if first <= (word.start() + word.end()) / 2 < last)


def _whole_frames(waveform: np.ndarray) -> int:
    return len(waveform) // samples_for_frames(1)
