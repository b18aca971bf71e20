"""Samples and shards in the real format; frames and audio encode their time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from made_shards import write_tars

from uniavgen.shards.sample import FaceTrack, Sample, SampleMeta, Word
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS
from uniavgen.train.codec.config import TOKEN_STRIDE
from uniavgen.train.data.crops import Focus, fitted_ovals, latent_shares

FACE_BOX = (0.25, 0.25, 0.75, 0.75)
"""The face oval is this rectangle, so its raster is known."""


def level_of_frame(frame: int) -> int:
    """Grey level of the corner of a frame, from which its time can be read."""
    return 20 + 3 * (frame % 64)


def encode_video(frames: np.ndarray) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=VIDEO_FPS, options={"crf": "8", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_audio(waveform: np.ndarray) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_24")
    return buffer.getvalue()


def make_sample(key: str, frames: int, *, height: int = 64, width: int = 64, seed: int = 0) -> Sample:
    """A clip: a face whose mouth opens with the audio level, on a background that counts frames."""
    random = np.random.default_rng(seed)
    time = np.arange(frames * SAMPLE_RATE // VIDEO_FPS) / SAMPLE_RATE
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * time + random.uniform(0, 6))
    waveform = 0.3 * envelope * np.sin(2 * np.pi * random.uniform(120, 300) * time)
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    rows, columns = slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4)
    for frame in range(frames):
        pixels[frame] = level_of_frame(frame)
        pixels[frame, rows, columns] = (200, 150, 120)
        opening = int(envelope[frame * SAMPLE_RATE // VIDEO_FPS] * height / 8)
        pixels[frame, 5 * height // 8 : 5 * height // 8 + opening, 3 * width // 8 : 5 * width // 8] = 20
    x0, y0, x1, y1 = FACE_BOX
    oval = np.tile(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32), (frames, 1, 1))
    face = FaceTrack(oval, np.tile(np.array(FACE_BOX, np.float32), (frames, 1)), np.ones(frames, np.float32))
    words = [Word(text=f"w{i}", start_s=i / 4, end_s=i / 4 + 0.2) for i in range(frames * 4 // VIDEO_FPS)]
    meta = SampleMeta(
        clip_id=key,
        source_id="s",
        source_uri="made",
        start_s=0,
        end_s=frames / VIDEO_FPS,
        speaker="a",
        language="en",
        transcript=" ".join(w.text for w in words),
        words=words,
        caption=f"Person {seed % 3} speaks.",
        caption_model="made",
        signals={},
        versions={},
    )
    return Sample(meta, encode_video(pixels), encode_audio(waveform), face)


def face_mask(
    face: FaceTrack,
    window: range,
    source: tuple[int, int],
    target: tuple[int, int],
    focus: Focus | None = None,
) -> np.ndarray:
    """Share of each video token inside the oval of a frame of size `source` that is fitted to `target`."""
    frames = slice(window.start, window.stop)
    oval = fitted_ovals(face.oval[frames], source, target, focus)
    return latent_shares(oval, face.score[frames], target, TOKEN_STRIDE)


def write_shards(folder: Path, samples: list[Sample], split: str = "train") -> Path:
    """A shards folder with one tar, as `uniavgen shard` leaves it."""
    return write_tars(folder, [samples], split)
