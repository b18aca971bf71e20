"""Whether a model's face speaks: lips, faces and identity of generated clips, each beside its controls.

    python tests/benchmarks/train/talking.py codec demo-output/corpus [--preset talk]
    python tests/benchmarks/train/talking.py model demo-output/corpus RUN [--windows 3] [--strip FILE]

Both read val clips only, which neither codec nor model was trained on. Lip opening is FaceLandmarker's, in
each frame alone. `codec` compares the clips before and after encoding and decoding. `model` generates each
window from its own audio, from another clip's audio, from its own audio in shuffled pieces, and jointly.
Medians have 95 % bootstrap intervals over windows; windows of one clip are not independent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from uniavgen.ingest.config import FaceConfig
from uniavgen.ingest.models.face_embedding import DlibEncoder
from uniavgen.ingest.models.face_reader import FaceReader
from uniavgen.orchestration.config import load_config
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.timing import SAMPLE_RATE, samples_for_frames
from uniavgen.train.codec.registry import CodecConfig
from uniavgen.train.codec.video import VideoCodec, to_pixels
from uniavgen.train.config import SamplingConfig
from uniavgen.train.data.codec_fitting import ensure_codec, load_data_codecs
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import Crop, cut_windows, fixed_windows
from uniavgen.train.generation import ClipGenerator, Conditions
from uniavgen.train.tasks import Task

PIECE_S = 0.2
"""Length of the pieces in which audio is shuffled."""
COLUMNS, SIDE, TITLE = 9, 128, 18


class LipReader:
    """Lip opening and face embedding of frames."""

    def __init__(self) -> None:
        self.faces, self.encoder = FaceReader(FaceConfig()), DlibEncoder()

    def close(self) -> None:
        self.faces.close()

    def lips(self, frames: np.ndarray) -> np.ndarray:
        """Lip opening of each frame uint8 [F, H, W, 3]; NaN where no face is found."""
        found = [self.faces.read(np.ascontiguousarray(frame)) for frame in frames]
        return np.array([faces[0].lip_gap if faces else np.nan for faces in found])

    def embedding(self, frame: np.ndarray) -> np.ndarray | None:
        """Unit vector of the face of a frame; None if there is none."""
        faces = self.faces.read(np.ascontiguousarray(frame))
        return self.encoder.encode(frame, faces[0].points) if faces else None


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's r where both are known; 0 for a constant."""
    known = np.isfinite(first) & np.isfinite(second)
    first, second = first[known], second[known]
    if len(first) < 8 or first.std() < 1e-9 or second.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def median_with_interval(values: Sequence[float]) -> str:
    """Median and 95 % bootstrap interval."""
    array = np.asarray(values, float)
    draws = np.random.default_rng(0).choice(array, (2000, len(array)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return f"{np.median(array):.3f} [{low:.3f}, {high:.3f}] n={len(array)}"


def energy(waveform: np.ndarray, frames: int) -> np.ndarray:
    """Level in dB of the audio of each frame."""
    parts = waveform[: samples_for_frames(frames)].reshape(frames, -1)
    decibel: np.ndarray = 20 * np.log10(np.sqrt((parts.astype(float) ** 2).mean(axis=1)) + 1e-4)
    return decibel


def shuffled(waveform: np.ndarray, seed: int) -> np.ndarray:
    """The audio in pieces of `PIECE_S` in random order."""
    length = round(PIECE_S * SAMPLE_RATE)
    pieces = [waveform[start : start + length] for start in range(0, len(waveform), length)]
    order = np.random.default_rng(seed).permutation(len(pieces))
    return np.concatenate([pieces[index] for index in order])


def held_out_windows(corpus: Path, data: DataConfig, windows: int) -> list[Crop]:
    """Evenly placed windows of every val clip, decoded."""
    stream = SampleStream(str(corpus / "shards"), "val")
    data = data.model_copy(update={"cached": data.cached.model_copy(update={"windows": windows})})
    crops: list[Crop] = []
    for key in sorted(stream.keys):
        sample = stream.sample_by_key(key)
        crops += cut_windows(sample, fixed_windows(sample, data), data)
    return crops


def through(codec: VideoCodec, frames: np.ndarray) -> np.ndarray:
    """Frames [F, H, W, 3] encoded and decoded."""
    decoded: np.ndarray = to_pixels(codec.decode(codec.encode(torch.from_numpy(frames)[None])))[0].numpy()
    return decoded


def psnr(truth: np.ndarray, other: np.ndarray) -> float:
    error = ((truth.astype(float) - other.astype(float)) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def measure_codec(corpus: Path, preset: str) -> None:
    """Lips and PSNR of whole val clips before and after the fitted codec and the DCT."""
    data = load_config(preset).train.data
    started, cpu = time.perf_counter(), time.process_time()
    path = ensure_codec(corpus / "shards", data, print)
    spent = time.perf_counter() - started, time.process_time() - cpu
    print(f"codec {path}: {spent[0]:.1f} s, {spent[1]:.1f} s of CPU")
    stream = SampleStream(str(corpus / "shards"), "val")
    with closing(LipReader()) as reader:
        for key in sorted(stream.keys):
            sample = stream.sample_by_key(key)
            longest = (len(sample.face.score) - 1) // 4 * 4 + 1
            whole = data.model_copy(update={"frames": longest, "mouth_mask": False})
            frames = cut_windows(sample, fixed_windows(sample, whole), whole)[0].frames
            assert frames is not None
            truth = reader.lips(frames)
            for name in ("fitted", "dct"):
                config = data.model_copy(update={"codecs": CodecConfig(video=name)})  # type: ignore[arg-type]
                codec = load_data_codecs(config, path).video
                assert codec is not None
                decoded = through(codec, frames)
                lips = reader.lips(decoded)
                r, found = correlation(truth, lips), np.isfinite(lips).mean()
                print(f"{key} {name:7} r {r:.3f}, {psnr(frames, decoded):.1f} dB, face in {found:.1%}")


def conditions_of(crop: Crop, **changes: Any) -> Conditions:
    assert crop.reference_frame is not None
    voice = None if crop.voice_inside else crop.reference_waveform
    given = Conditions(
        crop.caption, crop.speech_text, crop.reference_frame[0], voice, crop.frames, crop.waveform
    )
    return dataclasses.replace(given, **changes)


def measure_model(corpus: Path, run: Path, windows: int, seed: int, steps: int, strip: Path | None) -> None:
    """Print the figures of a run on val windows, and draw the first of them."""
    generator = ClipGenerator(run)
    sampling, data = SamplingConfig(steps=steps), generator.config.data
    crops = held_out_windows(corpus, data, windows)
    codec = generator.codecs.video
    assert codec is not None
    rows: list[dict[str, float]] = []
    started = time.perf_counter()
    with closing(LipReader()) as reader:
        truths = []
        for crop in crops:
            assert crop.frames is not None
            truths.append(reader.lips(crop.frames))
        for index, crop in enumerate(crops):
            other = next(
                number
                for number in [*range(index + 1, len(crops)), *range(index)]
                if crops[number].key != crop.key
            )
            clips = {
                "own": generator.generate(Task.AUDIO_DRIVEN, conditions_of(crop), sampling, seed),
                "other": generator.generate(
                    Task.AUDIO_DRIVEN, conditions_of(crop, waveform=crops[other].waveform), sampling, seed
                ),
                "shuffled": generator.generate(
                    Task.AUDIO_DRIVEN,
                    conditions_of(crop, waveform=shuffled(crop.waveform, index)),
                    sampling,
                    seed,
                ),
                "joint": generator.generate(Task.JOINT, conditions_of(crop), sampling, seed),
            }
            assert crop.frames is not None
            decoded = through(codec, crop.frames)
            lips = {name: reader.lips(clip.frames) for name, clip in clips.items()}
            row = {
                "codec": correlation(reader.lips(decoded), truths[index]),
                "own": correlation(lips["own"], truths[index]),
                "shuffled": correlation(lips["shuffled"], truths[index]),
                "other: its lips": correlation(lips["other"], truths[other]),
                "other: own lips": correlation(lips["other"], truths[index]),
                "spread, share of truth": float(np.nanstd(lips["own"]) / np.nanstd(truths[index])),
                "joint: own energy": correlation(lips["joint"], energy(clips["joint"].waveform, data.frames)),
                "joint: other energy": correlation(lips["joint"], energy(crops[other].waveform, data.frames)),
                "face found, driven": float(np.isfinite(lips["own"]).mean()),
                "face found, joint": float(np.isfinite(lips["joint"]).mean()),
                "identity": _identity(reader, crop.reference_frame, clips["own"].frames),
                "identity, other clip": _identity(reader, crops[other].reference_frame, clips["own"].frames),
                "identity, truth": _identity(reader, crop.reference_frame, crop.frames),
            }
            rows.append(row)
            print(json.dumps({"clip": crop.key, "start": crop.start} | row), flush=True)
            if strip and index == len(crops) // 2:
                draw_strip(strip, {"truth": crop.frames, "codec": decoded, "generated": clips["own"].frames})
    for name in rows[0]:
        print(f"{name:24} {median_with_interval([row[name] for row in rows])}")
    spent = (time.perf_counter() - started) / len(rows) / 4
    print(f"{spent:.1f} s a generated clip of {data.frames} frames, measuring included")


def _identity(reader: LipReader, reference: np.ndarray | None, frames: np.ndarray | None) -> float:
    """Mean cosine between the face vectors of a reference and of every eighth frame."""
    assert reference is not None
    assert frames is not None
    known = reader.embedding(reference[0])
    vectors = [reader.embedding(frame) for frame in frames[::8]]
    cosines = [float(known @ vector) for vector in vectors if known is not None and vector is not None]
    return float(np.mean(cosines)) if cosines else 0.0


def draw_strip(path: Path, rows: dict[str, np.ndarray]) -> None:
    """Rows of frames under their names."""
    height = SIDE + TITLE
    canvas = Image.new("RGB", (COLUMNS * SIDE, len(rows) * height), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (name, frames) in enumerate(rows.items()):
        draw.text((4, number * height + 1), name, (20, 30, 45), ImageFont.load_default(14))
        for column, index in enumerate(np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)):
            picture = Image.fromarray(frames[index]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            canvas.paste(picture, (column * SIDE, number * height + TITLE))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["codec", "model"])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--preset", default="talk")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--strip", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(2)
    if given.what == "codec":
        measure_codec(given.corpus, given.preset)
    else:
        measure_model(given.corpus, given.run, given.windows, given.seed, given.steps, given.strip)


if __name__ == "__main__":
    main()
