"""The training sample: the contract between the data engine and the trainer.

In a shard, a sample is four members with the key `clip_id`: `.mp4` (16 fps video without audio), `.flac` (24
kHz mono audio), `.face.npz` (`FaceTrack`) and `.json` (`SampleMeta`). Nothing is pickled.
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
    """The `.json` member of a sample. `versions` are those of the steps and models that measured the clip."""

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
    """Position of the speaking face in each pixel frame, in fractions of the frame's width and height.

    `oval` float32 [F, P, 2] (x, y of the outline), `box` float32 [F, 4] (x0, y0, x1, y1), `score` float32 [F]
    (0 if no face was detected; its oval is then all zero).
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
    """One sample with encoded media: `decode_video` and `decode_audio` decode them on demand."""

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
    """The sample as webdataset members by extension, in tar order."""
    return {
        "mp4": sample.video,
        "flac": sample.audio,
        "face.npz": sample.face.to_bytes(),
        "json": sample.meta.model_dump_json().encode(),
    }


def from_members(members: dict[str, Any]) -> Sample:
    """The inverse of `to_members`. Raises UserError that names the sample and what is missing or damaged."""
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
    """Decode a video to uint8 [F, H, W, 3] RGB frames in time order; with `indices`, only those frames.

    Raises UserError if a frame is missing.
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
            f"only {len(frames)} of {len(wanted or [0])} video frames can be decoded", kind="damaged-sample"
        )
    return np.stack(frames)


def frame_size(data: bytes) -> tuple[int, int]:
    """(width, height) of an encoded video in pixels. Raises UserError if it cannot be opened."""
    import av

    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            stream = container.streams.video[0]
            return stream.width, stream.height
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise UserError(f"the video cannot be opened: {error}", kind="damaged-sample") from error


def decode_audio(data: bytes) -> np.ndarray:
    """Decode a FLAC member to float32 [n] in -1..1 at 24 kHz mono. Raises UserError for another rate."""
    import soundfile

    waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    if rate != SAMPLE_RATE:
        raise UserError(f"the audio has {rate} Hz, samples have {SAMPLE_RATE} Hz", kind="damaged-sample")
    return waveform.mean(axis=1)


def rasterise_oval(
    oval: np.ndarray, score: np.ndarray, height: int, width: int, *, supersample: int = 8
) -> np.ndarray:
    """Face masks on a token grid: float32 [F, height, width], the share of each cell's area inside the oval.

    `oval` [F, P, 2] and `score` [F] are those of a FaceTrack; frames with score 0 have an empty mask. The
    area is measured on a grid `supersample` times finer (8 resolves 1/64 of a cell).
    """
    import cv2
    import numpy as np

    masks = np.zeros((len(oval), height, width), np.float32)
    fine = np.zeros((height * supersample, width * supersample), np.uint8)
    for frame in range(len(oval)):
        if score[frame] <= 0:
            continue
        fine[:] = 0
        # fraction x is pixel coordinate x * n - 1/2, because pixel centres are at half-integers
        points = oval[frame] * [width * supersample, height * supersample] - 0.5
        cv2.fillPoly(fine, [np.round(points * 16).astype(np.int32)], 1, shift=4)
        masks[frame] = fine.reshape(height, supersample, width, supersample).mean(axis=(1, 3))
    return masks
