"""What passes from step to step: one `SourceRecord` per video, filled on its way.

Times are seconds on the source's own clock, where 0 is the start of the container (a stream that starts late has
silence or its first frame before it). Frames are counted on the 16 fps grid: frame i stands at i / 16 s.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np

AUDIO_RATE = 16_000
"""Rate at which speech is analysed (Whisper's, pyannote's and ECAPA's own)."""


@dataclass(frozen=True)
class Span:
    """A labelled stretch of time: a shot, or a speaker's turn."""

    start_s: float
    end_s: float
    label: str = ""


@dataclass(frozen=True)
class SpokenWord:
    """A word with its times, its probability by Whisper, and its speaker ("" where no turn covers it)."""

    text: str
    start_s: float
    end_s: float
    score: float
    speaker: str = ""


@dataclass(frozen=True)
class Passage:
    """A stretch that Whisper heard at once, and what it thought of it."""

    start_s: float
    end_s: float
    text: str
    language: str
    language_probability: float
    log_probability: float
    no_speech_probability: float
    compression_ratio: float


@dataclass(frozen=True)
class Probe:
    """What a file says of itself, with rotation and pixel shape already applied to width and height."""

    duration_s: float
    width: int
    height: int
    fps: float
    video_codec: str
    audio_codec: str
    has_audio: bool


@dataclass
class FaceTable:
    """Faces of the analysed frames, a row each: N rows, ordered by frame.

    `frame` int32 [N], `track` int32 [N], `box` float32 [N, 4] (x0, y0, x1, y1) and `oval` float32 [N, 36, 2] in fractions
    of the picture, `score` float32 [N] by the detector, `lip_gap` float32 [N] over the face height, `yaw` float32 [N] in
    degrees, `sharpness` float32 [N] (variance of the Laplacian of the face on the analysis picture).
    """

    frame: np.ndarray
    track: np.ndarray
    box: np.ndarray
    oval: np.ndarray
    score: np.ndarray
    lip_gap: np.ndarray
    yaw: np.ndarray
    sharpness: np.ndarray

    def rows(self, mask: np.ndarray) -> FaceTable:
        """The rows that a boolean mask [N] keeps."""
        return FaceTable(**{name: value[mask] for name, value in vars(self).items()})


@dataclass
class FrameTable:
    """Per-frame measurements on the 16 fps grid, F frames from the start of the source.

    `luma` float32 [F] (0..255), `change` float32 [F] (mean absolute difference to the frame before, 0..255), `looked` bool
    [F] (whether faces were searched), `face_count` int16 [F] (faces seen, also small ones; -1 where not counted).
    """

    luma: np.ndarray
    change: np.ndarray
    looked: np.ndarray
    face_count: np.ndarray
    faces: FaceTable


@dataclass
class Proposal:
    """A span that shall become a clip; "" and no words where it is made without speech."""

    start_s: float
    end_s: float
    speaker: str = ""
    words: list[SpokenWord] = field(default_factory=list)


@dataclass(frozen=True)
class Failure:
    """Why a source ended: the step, a stable slug, a sentence."""

    stage: str
    error_type: str
    message: str


@dataclass
class SourceRecord:
    """One video on its way through ingest."""

    uri: str
    source_id: str
    probe: Probe | None = None
    pcm: np.ndarray | None = None
    """int16 [n] at 16 kHz, mono; None without a sound track."""
    turns: list[Span] = field(default_factory=list)
    voices: dict[str, list[float]] = field(default_factory=dict)
    """Mean voice embedding (192) of each speaker label."""
    passages: list[Passage] = field(default_factory=list)
    words: list[SpokenWord] = field(default_factory=list)
    shots: list[Span] = field(default_factory=list)
    frames: FrameTable | None = None
    proposals: list[Proposal] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the clips table, in the order of `proposals`."""
    failure: Failure | None = None
    step_seconds: dict[str, float] = field(default_factory=dict)

    def pack(self) -> bytes:
        """For the way between the graph's own processes only: one opaque column keeps Arrow from guessing types."""
        return pickle.dumps(self, protocol=5)

    @staticmethod
    def unpack(data: bytes) -> SourceRecord:
        record = pickle.loads(data)
        assert isinstance(record, SourceRecord)
        return record
