"""The training sample: the contract between those who make the corpus and those who train on it.

In a shard a sample is four members that share the key `clip_id`: `.mp4` (16 fps picture, no sound), `.flac` (24 kHz
mono), `.face.npz` (per-frame face oval, box and score, resolution-free) and `.json` (`SampleMeta`). A fifth,
`.latent.npz`, holds cached latents where they were computed. Nothing is pickled.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 1
REQUIRED_MEMBERS = ("mp4", "flac", "face.npz", "json")


class Word(BaseModel):
    """A spoken word; times in seconds from the start of its clip, score in 0..1."""

    model_config = ConfigDict(extra="forbid")
    text: str
    start_s: float
    end_s: float
    score: float = 1.0


class SampleMeta(BaseModel):
    """What a sample's `.json` says. Versions name the code and models that measured it."""

    model_config = ConfigDict(extra="forbid")
    schema_version: int = SCHEMA_VERSION
    clip_id: str
    source_id: str
    source_uri: str
    start_s: float
    end_s: float
    speaker: str
    language: str
    transcript: str
    words: list[Word]
    caption: str
    caption_model: str
    signals: dict[str, float | None]
    versions: dict[str, str]


@dataclass(frozen=True)
class FaceTrack:
    """Where the speaking face is in each pixel frame, in fractions of the picture's width and height.

    `oval` float32 [F, P, 2] (x, y of the outline), `box` float32 [F, 4] (x0, y0, x1, y1), `score` float32 [F]
    (0 where no face was found; its oval is then all zero).
    """

    oval: np.ndarray
    box: np.ndarray
    score: np.ndarray

    def to_bytes(self) -> bytes:
        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(buffer, oval=self.oval, box=self.box, score=self.score)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> FaceTrack:
        import numpy as np

        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return FaceTrack(arrays["oval"], arrays["box"], arrays["score"])


@dataclass(frozen=True)
class Sample:
    """One decoded-on-demand sample: media stay encoded until a reader asks for frames or sound."""

    meta: SampleMeta
    video: bytes
    audio: bytes
    face: FaceTrack

    @property
    def key(self) -> str:
        return self.meta.clip_id

    def frames(self) -> np.ndarray:
        """The decoded video: uint8 [F, H, W, 3] in RGB, 16 frames/s."""
        return decode_video(self.video)

    def waveform(self) -> np.ndarray:
        """The decoded audio: float32 [n] in -1..1 at 24 kHz."""
        return decode_audio(self.audio)


def to_members(sample: Sample) -> dict[str, bytes]:
    """The sample as webdataset members, in the order in which they stand in the tar."""
    return {
        "mp4": sample.video,
        "flac": sample.audio,
        "face.npz": sample.face.to_bytes(),
        "json": sample.meta.model_dump_json().encode(),
    }


def from_members(members: dict[str, Any]) -> Sample:
    """The inverse of `to_members`. Raises UserError naming the sample and what is missing or damaged."""
    key = str(members.get("__key__", "?"))
    missing = [name for name in REQUIRED_MEMBERS if name not in members]
    if missing:
        raise UserError(f"sample {key} lacks {', '.join(missing)}", kind="damaged-sample")
    try:
        meta = SampleMeta.model_validate_json(members["json"])
        face = FaceTrack.from_bytes(members["face.npz"])
    except (
        ValidationError,
        ValueError,
        KeyError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"sample {key} is damaged: {str(error).splitlines()[0]}", kind="damaged-sample"
        ) from error
    if meta.schema_version != SCHEMA_VERSION:
        raise UserError(
            f"sample {key} has schema version {meta.schema_version}, this program reads {SCHEMA_VERSION}",
            hint="write the shards again with `uniavgen shard`",
            kind="wrong-version",
        )
    return Sample(meta, members["mp4"], members["flac"], face)


def decode_video(data: bytes, indices: Collection[int] | None = None) -> np.ndarray:
    """Frames of an encoded video in order of time: uint8 [F, H, W, 3] in RGB; with `indices`, only those.

    Raises UserError where a wanted frame is not there.
    """
    import av
    import numpy as np

    wanted = None if indices is None else set(indices)
    frames: list[np.ndarray] = []
    with av.open(io.BytesIO(data), mode="r") as container:
        for index, frame in enumerate(container.decode(video=0)):
            if wanted is not None and len(frames) == len(wanted):
                break
            if wanted is None or index in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
    if not frames or (wanted is not None and len(frames) < len(wanted)):
        raise UserError(
            f"the video gives {len(frames)} of {len(wanted or [0])} frames", kind="damaged-sample"
        )
    return np.stack(frames)


def frame_size(data: bytes) -> tuple[int, int]:
    """(width, height) of an encoded video in pixels. Raises UserError where it cannot be opened."""
    import av

    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            stream = container.streams.video[0]
            return stream.width, stream.height
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise UserError(f"the video cannot be opened: {error}", kind="damaged-sample") from error


def decode_audio(data: bytes) -> np.ndarray:
    """The sound of a FLAC member: float32 [n] in -1..1 at 24 kHz mono. Raises UserError at another rate."""
    import soundfile

    waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    if rate != SAMPLE_RATE:
        raise UserError(f"sound is at {rate} Hz, samples hold {SAMPLE_RATE} Hz", kind="damaged-sample")
    return waveform.mean(axis=1)


def rasterise_oval(
    oval: np.ndarray, score: np.ndarray, height: int, width: int, *, supersample: int = 8
) -> np.ndarray:
    """Face masks on a token grid: float32 [F, height, width], each cell the share of its area inside the oval.

    `oval` [F, P, 2] and `score` [F] are a FaceTrack's; frames with score 0 give an empty mask. Area is measured on a
    grid `supersample` times finer (our choice: 1/64 of a cell).
    """
    import cv2
    import numpy as np

    masks = np.zeros((len(oval), height, width), np.float32)
    fine = np.zeros((height * supersample, width * supersample), np.uint8)
    for frame in range(len(oval)):
        if score[frame] <= 0:
            continue
        fine[:] = 0
        # a point at fraction x lies at pixel x * n - 1/2, since pixel centres are at half-integers
        points = oval[frame] * [width * supersample, height * supersample] - 0.5
        cv2.fillPoly(fine, [np.round(points * 16).astype(np.int32)], 1, shift=4)
        masks[frame] = fine.reshape(height, supersample, width, supersample).mean(axis=(1, 3))
    return masks
