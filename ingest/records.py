"""Results of the ingest steps, one dataclass each, and the `SourceRecord` that carries them.

Times are seconds from the start of the container; a stream that starts late is padded with silence or with
its first frame. Frames are counted on the 16 fps grid: frame i is shown at i / 16 s. The step cache stores
these dataclasses as JSON and arrays, so their field names are part of the corpus format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict

from uniavgen.shards.text import join_words

ARRAYS = ConfigDict(arbitrary_types_allowed=True)
"""Lets pydantic, which rebuilds stored results, accept dataclasses with arrays."""

AUDIO_RATE = 16_000
"""Sample rate of speech analysis in Hz; Whisper, pyannote and ECAPA use it."""

SEEK_MARGIN_S = 10.0
"""A seek starts this far before the wanted time and drops frames exactly: in some containers a seek lands
seconds off."""

DUPLICATE = "duplicate"
"""Failure kind of a source whose content another source has."""

DELETED = "forgotten"
"""Failure kind of a source that `uniavgen forget` removed; it must not be measured again."""

DELETED_MESSAGE = "this content, or a person in it, was deleted on request"


@dataclass(frozen=True)
class Span:
    """A labelled interval: a shot, or a speaker's turn."""

    start_s: float
    end_s: float
    label: str = ""


@dataclass(frozen=True)
class SpokenWord:
    """A word with its times, its probability, and its speaker ("" where no speaker turn covers it)."""

    text: str
    start_s: float
    end_s: float
    score: float
    speaker: str = ""
    gap: str = " "
    """White space before it in its passage; empty in scripts without spaces."""


@dataclass(frozen=True)
class Passage:
    """An interval that Whisper transcribed in one pass, with Whisper's confidence values.

    One speaker speaks in it, whose words, each after its gap, are its text.
    """

    start_s: float
    end_s: float
    text: str
    language: str
    language_probability: float
    log_probability: float
    no_speech_probability: float
    compression_ratio: float
    speaker: str = ""


@dataclass(frozen=True)
class StreamInfo:
    """A video, audio or subtitle stream of a file."""

    index: int
    """Counts from 0 among all streams of the file."""
    kind: str
    codec: str
    language: str = ""
    title: str = ""
    default: bool = False
    """Whether the file marks it as the stream to play."""
    roles: tuple[str, ...] = ()
    """Its other dispositions, by libavformat's names (`comment`, `visual_impaired`, `attached_pic`)."""
    width: int = 0
    height: int = 0
    channels: int = 0


@dataclass(frozen=True)
class Probe:
    """Container facts of a file. Rotation and pixel aspect ratio are applied to width and height."""

    duration_s: float
    width: int
    height: int
    fps: float
    video_codec: str
    audio_codec: str
    has_audio: bool
    bit_rate: float = 0.0
    """Bits per second of the video stream; 0 if unknown."""
    interlaced_ratio: float = 0.0
    """Share of the examined frames that show two fields of different times."""
    top_field_first: bool = True
    """Whether the top field of an interlaced frame is the earlier one."""
    bytes: int | None = None
    """File size in bytes."""
    streams: tuple[StreamInfo, ...] = ()
    """Every stream that could be chosen or listed."""
    video_stream: int = 0
    audio_stream: int = -1
    """Indices of the streams that every step decodes; -1: there is none."""
    start_s: float | None = None
    """Where the chosen streams start on the file's own clock. None: ffmpeg finds the start by itself."""
    clock_zero_s: float | None = None
    """Time 0 on the file's own clock, as the pinned ffmpeg finds it by itself. None: unknown. Another version
    may find another one."""
    declared_s: float = 0.0
    """Length that the file declares for the chosen streams; 0 if it declares none."""
    transfer: str = ""
    """Transfer function of high dynamic range: `smpte2084` (PQ) or `arib-std-b67` (HLG); else ""."""
    matrix: str = ""
    """Colour matrix that only zscale can read, by its name there: `ycgco`, `2020_cl` or `ictcp`; else ""."""
    mono: str = "mix"
    """How channels become one: `mix`, one of `left`, `right`, `center`, or `difference` (opposite phase)."""
    channel_correlation: float | None = None
    """Correlation of left and right, -1..1; None for other than two channels, or where one is silent."""
    frame_sizes: int = 1
    """Different sizes of the stream's frames."""
    repairs: tuple[str, ...] = ()
    """Why every step reads a repaired copy: `timestamps` jump, `seeking` finds another place, the
    `audio-format` changes, or `audio-gaps` and overlaps put its samples beside its timestamps."""

    @property
    def variant(self) -> str:
        """What sets this source apart from those that release 0.3.0 measured right; "" for nothing.

        It is part of the keys of this source's results, so that only these are measured again.
        """
        firsts: dict[str, int] = {}
        for stream in self.streams:
            firsts.setdefault(stream.kind, stream.index)
        facts = {
            "video": self.video_stream if self.video_stream != firsts.get("video", 0) else None,
            "audio": self.audio_stream if self.audio_stream != firsts.get("audio", -1) else None,
            "start": self.start_s,
            "transfer": self.transfer or None,
            "matrix": self.matrix or None,
            "mono": self.mono if self.mono != "mix" else None,
            "sizes": self.frame_sizes if self.frame_sizes > 1 else None,
            "repairs": ",".join(self.repairs) or None,
        }
        return " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)


@dataclass(frozen=True)
class LocalCopy:
    """Path of the source on this machine."""

    path: str


@dataclass(frozen=True)
class PlayableCopy:
    """Path and facts of the file that every step decodes: the local copy, or a repaired one."""

    path: str
    probe: Probe


@dataclass
class FaceTable:
    """Faces of the analysed frames, one row each: N rows, ordered by frame.

    `frame` int32 [N], `track` int32 [N], `box` float32 [N, 4] (x0, y0, x1, y1) and `oval` float32 [N, 36, 2]
    in fractions of the frame, `score` float32 [N] of the detector, `lip_gap` float32 [N] relative to the face
    height; `yaw`, `pitch` and `roll` float32 [N] in degrees (positive: towards the right of the frame, up,
    and the head tilted to the left of the frame), `sharpness` float32 [N] (variance of the Laplacian of the
    face in the analysis frame).
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
        """The rows where the boolean mask [N] is true."""
        return FaceTable(**{name: value[mask] for name, value in vars(self).items()})


@dataclass
class FaceEmbeddings:
    """Face embeddings, n rows: `frame` int32 [n], `box` float32 [n, 4] as in `FaceTable`,
    `vector` float32 [n, d]."""

    frame: np.ndarray
    box: np.ndarray
    vector: np.ndarray
    __pydantic_config__ = ARRAYS


@dataclass
class FacesSeen:
    """Faces on the 16 fps grid, F frames from the start of the source.

    `looked` bool [F] (whether faces were searched), `face_count` int16 [F] (faces seen, small ones included;
    -1 if not counted), `denied` int16 [F] (landmark sets that the face detector does not confirm; they have
    no row in `faces`).
    """

    looked: np.ndarray
    face_count: np.ndarray
    denied: np.ndarray
    faces: FaceTable
    vectors: FaceEmbeddings | None = None
    """Embeddings of some of the faces; None without an embedding model."""
    __pydantic_config__ = ARRAYS


@dataclass
class FrameTable:
    """Brightness and change on the 16 fps grid, F frames from the start of the source.

    `luma` float32 [F] (0..255), `change` float32 [F] (mean absolute difference to the frame before, 0..255).
    """

    luma: np.ndarray
    change: np.ndarray
    cells: np.ndarray | None = None
    """Mean brightness of 16 x 9 cells, uint8 [F, 9, 16]; clips are compared with it. None in results of
    release 0.3.0."""
    __pydantic_config__ = ARRAYS


@dataclass
class TextSeen:
    """Burned-in text on the 16 fps grid: `ratio` float32 [F], share of the frame; NaN if not examined."""

    ratio: np.ndarray
    __pydantic_config__ = ARRAYS


@dataclass
class Diarization:
    """Speaker turns; `voices` maps each speaker label to its mean speaker embedding (192 values)."""

    turns: list[Span] = field(default_factory=list)
    voices: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Transcript:
    """Transcribed words, each with the label of its speaker."""

    passages: list[Passage] = field(default_factory=list)
    words: list[SpokenWord] = field(default_factory=list)
    variant: str = ""
    """Empty where release 0.3.0 gave the same words: results that depend on them are then still right."""


@dataclass
class Shots:
    """Shots in order of time; together they cover the source."""

    spans: list[Span]


@dataclass
class Proposal:
    """An interval that becomes a clip; without usable speech it has no speaker ("") and no words."""

    start_s: float
    end_s: float
    speaker: str = ""
    words: list[SpokenWord] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The part of the passage that these words are."""
        return join_words((word.text for word in self.words), (word.gap for word in self.words))


@dataclass
class Proposals:
    """Clip proposals of one source, in order of time."""

    clips: list[Proposal]


@dataclass
class ClipAudio:
    """Audio signals of one clip by name; empty without an audio track."""

    signals: dict[str, float | None]


@dataclass
class AudioMeasures:
    """One entry per proposal."""

    clips: list[ClipAudio]


@dataclass
class ClipSync:
    """Lip sync of one clip: track of its main face (None: no face), signals, correlation curve."""

    track: int | None
    signals: dict[str, float | None]
    curve: list[float] | None = None


@dataclass
class SyncMeasures:
    """One entry per proposal."""

    clips: list[ClipSync]


@dataclass
class VideoHashes:
    """Video hashes of a source, int64 [n], four per second (`measures.hash.VideoHasher`)."""

    values: np.ndarray
    __pydantic_config__ = ARRAYS


@dataclass
class ClipFingerprints:
    """Fingerprints by which duplicates of a clip are found (`measures.fingerprint`)."""

    video_hash: list[int] | None
    sound_hash: list[int] | None
    text_hash: int | None
    face: list[float] | None = None


@dataclass
class Fingerprints:
    """One entry per proposal."""

    clips: list[ClipFingerprints]


@dataclass
class MeasuredRows:
    """Rows of the clips table, one per proposal, and the measured columns of the sources table."""

    clips: list[dict[str, Any]]
    source: dict[str, Any]


@dataclass(frozen=True)
class CutMedia:
    """Marker result: the clips' media files are in the corpus."""


@dataclass(frozen=True)
class Failure:
    """Why a source or a clip failed: `stage` names the step, `error_type` is a stable slug, `message` a
    sentence.
    """

    stage: str
    error_type: str
    message: str


Result = TypeVar("Result")


@dataclass
class SourceRecord:
    """One video on its way through ingest: identity, failure, and step results loaded on demand."""

    uri: str
    source_id: str = ""
    stamp: str = ""
    """Size and modification time, or the server's entity tag. An unchanged source is not read again."""
    bytes: int | None = None
    failure: Failure | None = None
    clip_failures: dict[str, Failure] = field(default_factory=dict)
    """By clip_id, the clips that cannot be cut. They are no clips of the corpus; the others are."""
    step_seconds: dict[str, float] = field(default_factory=dict)
    results: dict[type, Any] = field(default_factory=dict, repr=False)
    """By the class of the result."""
    load_result: Callable[[SourceRecord, type], Any] | None = field(default=None, repr=False)
    """Called for a result that is not in `results`; returns it or raises."""
    origin: str = ""
    """The line of a list file that names the source, for the message if it cannot be read."""

    def result(self, kind: type[Result]) -> Result:
        """The step result of class `kind`. Raises KeyError if its step has not run."""
        if kind not in self.results:
            if self.load_result is None:
                raise KeyError(kind.__name__)
            self.results[kind] = self.load_result(self, kind)
        loaded: Result = self.results[kind]
        return loaded

    def to_json(self) -> str:
        """The record without results: what is sent between workers is small whatever the source's length."""
        failure = asdict(self.failure) if self.failure else None
        clip_failures = {clip: asdict(reason) for clip, reason in self.clip_failures.items()}
        names = ("uri", "source_id", "stamp", "bytes", "origin", "step_seconds")
        facts = {name: getattr(self, name) for name in names}
        return json.dumps({**facts, "failure": failure, "clip_failures": clip_failures})

    @staticmethod
    def from_json(text: str) -> SourceRecord:
        facts = json.loads(text)
        failure = facts.pop("failure")
        clip_failures = {clip: Failure(**reason) for clip, reason in facts.pop("clip_failures").items()}
        return SourceRecord(
            **facts, failure=Failure(**failure) if failure else None, clip_failures=clip_failures
        )
