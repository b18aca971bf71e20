"""What steps find out, a dataclass each, and the `SourceRecord` of one video that gives them to the steps after.

Times are seconds on the source's own clock, where 0 is the start of the container (a stream that starts late has
silence or its first frame before it). Frames are counted on the 16 fps grid: frame i stands at i / 16 s.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict

ARRAYS = ConfigDict(arbitrary_types_allowed=True)
"""Of a dataclass with arrays: pydantic, which rebuilds stored results, takes them as they are."""

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
    bit_rate: float = 0.0
    """Of the picture, in bits per second; 0 where it cannot be told."""
    interlaced_ratio: float = 0.0
    """Share of the looked-at frames in which two fields of different times show."""
    top_field_first: bool = True
    """Which field of an interlaced frame is the earlier one."""
    bytes: int | None = None
    """Size of the file."""


@dataclass(frozen=True)
class LocalCopy:
    """Where the source can be read on this machine."""

    path: str


@dataclass
class FaceTable:
    """Faces of the analysed frames, a row each: N rows, ordered by frame.

    `frame` int32 [N], `track` int32 [N], `box` float32 [N, 4] (x0, y0, x1, y1) and `oval` float32 [N, 36, 2] in fractions
    of the picture, `score` float32 [N] by the detector, `lip_gap` float32 [N] over the face height; `yaw`, `pitch` and
    `roll` float32 [N] in degrees (positive: towards the picture's right, up, and the head leaning to the picture's left),
    `sharpness` float32 [N] (variance of the Laplacian of the face on the analysis picture).
    """

    frame: np.ndarray
    track: np.ndarray
    box: np.ndarray
    oval: np.ndarray
    score: np.ndarray
    lip_gap: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    sharpness: np.ndarray
    __pydantic_config__ = ARRAYS

    def rows(self, mask: np.ndarray) -> FaceTable:
        """The rows that a boolean mask [N] keeps."""
        return FaceTable(**{name: value[mask] for name, value in vars(self).items()})


@dataclass
class FaceVectors:
    """Who the faces are, n rows: `frame` int32 [n], `box` float32 [n, 4] as in `FaceTable`, `vector` float32 [n, d]."""

    frame: np.ndarray
    box: np.ndarray
    vector: np.ndarray
    __pydantic_config__ = ARRAYS


@dataclass
class FacesSeen:
    """Faces on the 16 fps grid, F frames from the start of the source.

    `looked` bool [F] (whether faces were searched), `face_count` int16 [F] (faces seen, also small ones; -1 where not counted),
    `denied` int16 [F] (places with landmarks of which the detector says that they are no face; no row of `faces`).
    """

    looked: np.ndarray
    face_count: np.ndarray
    denied: np.ndarray
    faces: FaceTable
    vectors: FaceVectors | None = None
    """Of some of the faces, where a model was named."""
    __pydantic_config__ = ARRAYS


@dataclass
class FrameTable:
    """The picture's own measurements on the 16 fps grid, F frames from the start of the source.

    `luma` float32 [F] (0..255), `change` float32 [F] (mean absolute difference to the frame before, 0..255).
    """

    luma: np.ndarray
    change: np.ndarray
    __pydantic_config__ = ARRAYS


@dataclass
class TextSeen:
    """Burned-in text on the 16 fps grid: `ratio` float32 [F], share of the picture under it; NaN where not looked at."""

    ratio: np.ndarray
    __pydantic_config__ = ARRAYS


@dataclass
class Diarization:
    """Who speaks when; `voices` holds the mean voice embedding (192) of each speaker label."""

    turns: list[Span] = field(default_factory=list)
    voices: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Transcript:
    """What is said; a word carries the label of its speaker."""

    passages: list[Passage] = field(default_factory=list)
    words: list[SpokenWord] = field(default_factory=list)


@dataclass
class Shots:
    """Shots in order, which cover the source."""

    spans: list[Span]


@dataclass
class Proposal:
    """A span that shall become a clip; "" and no words where it is made without speech."""

    start_s: float
    end_s: float
    speaker: str = ""
    words: list[SpokenWord] = field(default_factory=list)


@dataclass
class Proposals:
    """The spans of one source that become clips, in order of time."""

    clips: list[Proposal]


@dataclass
class ClipSound:
    """Signals of one clip's sound, by their names in `shards.corpus.signals`."""

    signals: dict[str, float | None]


@dataclass
class SoundMeasures:
    """One entry per proposal."""

    clips: list[ClipSound]


@dataclass
class ClipSync:
    """Lips against sound in one clip: the track of its main face (None: no face), the signals, the correlation curve."""

    track: int | None
    signals: dict[str, float | None]
    curve: list[float] | None = None


@dataclass
class SyncMeasures:
    """One entry per proposal."""

    clips: list[ClipSync]


@dataclass
class VideoHashes:
    """Hashes of a source's pictures, int64 [n], four a second (`fingerprints.VideoHasher`)."""

    values: np.ndarray
    __pydantic_config__ = ARRAYS


@dataclass
class ClipPrints:
    """By which copies of a clip are known again: `ingest.fingerprints`."""

    video_hash: list[int] | None
    sound_hash: list[int] | None
    text_hash: int | None
    face: list[float] | None = None


@dataclass
class Fingerprints:
    """One entry per proposal."""

    clips: list[ClipPrints]


@dataclass
class Measured:
    """Rows of the clips table, in the order of the proposals, and the columns of the sources table that come from steps."""

    clips: list[dict[str, Any]]
    source: dict[str, Any]


@dataclass(frozen=True)
class MediaInPlace:
    """The clips' files stand at their place."""


@dataclass(frozen=True)
class Failure:
    """Why a source ended: the step, a stable slug, a sentence."""

    stage: str
    error_type: str
    message: str


Result = TypeVar("Result")


@dataclass
class SourceRecord:
    """One video on its way through ingest: who it is, what became of it, and the steps' results, fetched when asked for."""

    uri: str
    source_id: str = ""
    stamp: str = ""
    """Size and time, or the server's tag: while it stays, the source is not read again."""
    bytes: int | None = None
    failure: Failure | None = None
    step_seconds: dict[str, float] = field(default_factory=dict)
    results: dict[type, Any] = field(default_factory=dict, repr=False)
    """By the class of the result."""
    fetch: Callable[[SourceRecord, type], Any] | None = field(default=None, repr=False)
    """Asked for a result that is not here; gives it, or raises."""

    def of(self, kind: type[Result]) -> Result:
        """The result of the step that gives a `kind`. Raises KeyError where that step has not run."""
        if kind not in self.results:
            if self.fetch is None:
                raise KeyError(kind.__name__)
            self.results[kind] = self.fetch(self, kind)
        found: Result = self.results[kind]
        return found

    def pack(self) -> str:
        """As JSON, without results: what travels between the stages is small whatever the source's length."""
        failure = asdict(self.failure) if self.failure else None
        facts = {name: getattr(self, name) for name in ("uri", "source_id", "stamp", "bytes", "step_seconds")}
        return json.dumps({**facts, "failure": failure})

    @staticmethod
    def unpack(text: str) -> SourceRecord:
        facts = json.loads(text)
        failure = facts.pop("failure")
        return SourceRecord(**facts, failure=Failure(**failure) if failure else None)
