"""Fit the codec of a corpus, keep it beside its shards and in run folders, and load the codecs of a run.

    shards/codecs/fitted-128x128-stabilised.safetensors    one for each size and crop of windows
    RUN/video-codec.safetensors                            the copy with which the run was trained

A codec is fitted once and then stays, also if the corpus grows: other latents would be of no use to the
models that were trained on it. A run keeps its copy, so it can be resumed and sampled without the corpus.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from uniavgen.shards.atomic_files import locked, replace_file
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import CODECS_FOLDER, LATENTS_LOCK
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.sample import Sample
from uniavgen.shards.timing import LATENT_STRIDE
from uniavgen.shards.uris import local_path
from uniavgen.train.codec.fitted import FitDescription, FittedCodec, fit_codec
from uniavgen.train.codec.registry import VIDEO_CODECS, Codecs, load_codecs
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import fit_video

RUN_CODEC = "video-codec.safetensors"
"""The copy of the fitted codec in a run folder and in an export."""
MAX_CLIPS, MAX_BLOCKS = 256, 2048
"""Most training clips, and blocks of four frames in all, that a codec is fitted to. Heuristic: 2048 blocks of
128 x 128 px are 0.4 GB in memory."""
SHIFT = 2
"""Most pixels by which an added copy of a block is moved. Heuristic; with mirrored and moved copies, the
clips of a person whom the codec never saw are decoded with 36 instead of 31 dB (measured on the demo's
corpus)."""
MIN_BLOCKS = 64
"""Fewest blocks from which 48 components can be estimated. Heuristic."""


def is_fitted(data: DataConfig) -> bool:
    """Whether the video codec of this configuration is fitted to a corpus."""
    return VIDEO_CODECS[data.codecs.video].fitted


def codec_path(shards_dir: str | Path, data: DataConfig) -> Path:
    """Where the codec for these windows is kept beside the shards."""
    return Path(shards_dir) / CODECS_FOLDER / f"fitted-{data.width}x{data.height}-{data.crop}.safetensors"


def load_data_codecs(
    data: DataConfig, kept: Path | None, *, with_video: bool = True, device: str = "cpu"
) -> Codecs:
    """The codecs of a configuration; `kept` is the file of a fitted one that no setting names.

    Raises UserError if weights are missing, or if a fitted codec does not belong to these windows.
    """
    config = data.codecs
    if is_fitted(data) and not config.video_weights and kept is not None:
        config = config.model_copy(update={"video_weights": str(kept)})
    codecs = load_codecs(config, with_video=with_video, device=device)
    if isinstance(codecs.video, FittedCodec):
        codecs.video.check_belongs(data.height, data.width, data.crop)
    return codecs


def ensure_codec(
    shards_url: str | Path, data: DataConfig, on_fit: Callable[[str], None] = lambda line: None
) -> Path | None:
    """The file of the codec that the windows need, fitted now if there is none; None for other codecs.

    `on_fit(line)` is called before fitting. Raises UserError for remote shards without a codec, too few
    clips, several window shapes, or a codec of other windows.
    """
    if not is_fitted(data):
        return None
    if data.buckets:
        raise UserError(
            f"codec fitted is for one window shape, {len(data.buckets)} are configured",
            where="train.data.buckets",
            hint="set train.data.buckets=[] or train.data.codecs.video=dct",
            kind="several-windows",
        )
    if data.codecs.video_weights:
        path = Path(data.codecs.video_weights)
        FittedCodec.load(path).check_belongs(data.height, data.width, data.crop)
        return path
    local = local_path(str(shards_url))
    if local is None:
        raise UserError(
            "a codec is fitted to shards on this machine, these are in a remote store",
            where=shards_url,
            hint="fit it where the shards are local, and name its file as train.data.codecs.video_weights",
            kind="missing-weights",
        )
    path = codec_path(local, data)
    if path.is_file():
        FittedCodec.load(path).check_belongs(data.height, data.width, data.crop)
        return path
    on_fit(f"fitting the video codec to the training clips: {path.name}")
    codec = fit_to_shards(Path(local), data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(Path(local).parent / LATENTS_LOCK, "another run makes, copies or deletes latents here"):
        replace_file(path, codec.content)
    return path


def keep_in_run(path: Path | None, run_dir: str | Path) -> None:
    """Copy the codec into a run folder, unless the run has one.

    Raises UserError of kind `other-codec` if it has another one.
    """
    kept = Path(run_dir) / RUN_CODEC
    if path is None or path == kept:
        return
    if not kept.is_file():
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        replace_file(kept, path.read_bytes())
    elif _sha256(kept) != _sha256(path):
        raise UserError(
            "this run was trained with another fitted codec than the one beside the shards",
            where=path,
            hint=f"put the run's own there, which is {kept}, or use another --run folder",
            kind="other-codec",
        )


def copy_codec(run_dir: str | Path, out: Path) -> Path | None:
    """Copy the codec of a run into another folder; None if the run has none."""
    kept = Path(run_dir) / RUN_CODEC
    if not kept.is_file():
        return None
    shutil.copyfile(kept, out / RUN_CODEC)
    return out / RUN_CODEC


def fit_to_shards(shards_dir: Path, data: DataConfig) -> FittedCodec:
    """Fit a codec to the training clips; equal shards and settings give equal bytes.

    Raises UserError if the clips have too few frames, or if all of them are damaged.
    """
    stream = SampleStream(str(shards_dir), "train", error_budget=data.damage)
    keys = sorted(stream.keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())[:MAX_CLIPS]
    blocks, clips = [], 0
    for key in sorted(keys):
        try:
            found = clip_blocks(stream.sample_by_key(key), data, MAX_BLOCKS // len(keys))
        except UserError as error:
            if error.kind != "damaged-sample":
                raise
            continue
        blocks.append(found)
        clips += bool(len(found))
    count = sum(map(len, blocks))
    if count < MIN_BLOCKS:
        raise UserError(
            f"the training clips have {count * LATENT_STRIDE} usable frames, a codec needs "
            f"{MIN_BLOCKS * LATENT_STRIDE}",
            where=shards_dir,
            hint="ingest more videos, or set train.data.codecs.video=dct",
            kind="too-few-frames",
        )
    described = FitDescription(
        data.height, data.width, data.crop, tuple(sorted(stream.shards.values())), clips
    )
    return fit_codec(torch.from_numpy(np.concatenate(blocks)), described)


def clip_blocks(sample: Sample, data: DataConfig, most: int) -> np.ndarray:
    """At most `most` blocks of four frames of a clip, evenly spread: uint8 [n, 4, H, W, 3].

    Half of them are mirrored and moved copies of the others: other faces, and less exact tracks.
    """
    try:
        pixels = sample.frames()
    except (OSError, RuntimeError, ValueError) as error:  # raised by PyAV for damaged media
        raise UserError(f"sample {sample.key} cannot be decoded: {error}", kind="damaged-sample") from error
    pixels = pixels[: len(sample.face.score)]
    starts = len(pixels) - LATENT_STRIDE + 1
    count = min(most // 2, starts // 2)  # blocks overlap by two frames at most: others teach little
    if count < 1:
        return np.empty((0, LATENT_STRIDE, data.height, data.width, 3), np.uint8)
    fitted, _ = fit_video(pixels, list(range(len(pixels))), sample.face, data)
    first = np.linspace(0, starts - 1, count).round().astype(int)
    blocks = fitted[first[:, None] + np.arange(LATENT_STRIDE)]
    random = np.random.default_rng(list(sample.key.encode()))
    return np.concatenate([blocks, np.stack([_changed_copy(block, random) for block in blocks])])


def _changed_copy(block: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A block [4, H, W, 3] mirrored, and moved by up to `SHIFT` px; its edge is repeated."""
    padded = np.pad(block[:, :, ::-1], ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    top, left = random.integers(2 * SHIFT + 1, size=2)
    return padded[:, top : top + block.shape[1], left : left + block.shape[2]]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
