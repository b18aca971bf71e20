"""A video codec that is fitted to the training clips of one corpus: principal components per block position.

The frame is divided into places of 16 x 16 px. At each place, the 48 principal components of the blocks of 4
frames that the training clips show there, and of the blocks of one frame, are the latent. One basis for all
places would spend its components on edges of any direction; a basis per place knows what is seen there, so a
mouth keeps its opening. The price: it decodes only what looks like the clips that it was fitted to, at one
size and in one kind of crop. It replaces the Wan2.2 VAE in small trials and is not in the paper.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import LATENT_STRIDE
from uniavgen.train.codec.config import VIDEO_CHANNELS, VIDEO_STRIDE
from uniavgen.train.codec.video import check_frames, to_unit

FORMAT_VERSION = 1
"""Version of the file and of all code between clips and components. Raise it with any change of either."""
PIXEL_NOISE = 2 / 255 / 12**0.5
"""Standard deviation of rounding to 8 bits, in -1..1: deviations below it are noise."""
WHITENING = 0.5
"""Latents are coefficients divided by deviation ** WHITENING. 1 would give the last component, which changes
single grey levels, the weight of the first in a loss; 0 would leave latents of very different sizes.
Heuristic."""
OVERSAMPLED, ITERATIONS = 8, 1
"""Extra vectors and power iterations of the randomised SVD (Halko et al., arXiv 0909.4061). Heuristic."""
THREADS = 2
"""PyTorch threads of a fit: fixed, as sums over other numbers of threads differ in their last bits."""


class BlockBasis(NamedTuple):
    """mean [P, D], orthonormal basis [P, 48, D] and divisor [P, 48] of P places; D = frames * 16 * 16 * 3.

    All float32; mean and basis hold values of float16, as they are stored.
    """

    mean: Tensor
    basis: Tensor
    spread: Tensor

    def to(self, device: str) -> BlockBasis:
        return BlockBasis(*(part.to(device) for part in self))


@dataclass(frozen=True)
class FitDescription:
    """What a codec was fitted to: size and crop of the frames, SHA-256 of the train shards, and amounts."""

    height: int
    width: int
    crop: str
    shards: tuple[str, ...] = ()
    clips: int = 0
    blocks: int = 0


def to_blocks(pixels: Tensor, depth: int) -> Tensor:
    """Frames [B, n * depth, H, W, 3] -> blocks [B, n, H/16 * W/16, depth * 16 * 16 * 3]."""
    batch, frames, height, width, _ = pixels.shape
    rows, columns = height // VIDEO_STRIDE, width // VIDEO_STRIDE
    split = pixels.reshape(batch, frames // depth, depth, rows, VIDEO_STRIDE, columns, VIDEO_STRIDE, 3)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(2, 3)


def from_blocks(blocks: Tensor, depth: int, rows: int, columns: int) -> Tensor:
    """The inverse of `to_blocks`."""
    n = VIDEO_STRIDE
    split = blocks.unflatten(3, (depth, n, n, 3)).unflatten(2, (rows, columns))
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)


class FittedCodec:
    """Encodes frames of the size and crop that it was fitted to; the first frame is a block of its own."""

    name = "fitted"
    description = (
        "principal components per block position, fitted to the training clips of this corpus: a stand-in "
        "for the Wan2.2 VAE that shows only what looks like those clips"
    )

    def __init__(self, first: BlockBasis, rest: BlockBasis, fit: FitDescription, device: str = "cpu") -> None:
        self.fit = fit
        self.content = _content(first, rest, fit)
        self.digest = hashlib.sha256(self.content).hexdigest()[:16]
        self.first, self.rest = first.to(device), rest.to(device)

    @staticmethod
    def load(path: str | Path, device: str = "cpu") -> FittedCodec:
        """Read a file. Raises UserError of kind `missing-weights`, `damaged-codec` or `wrong-version`."""
        from safetensors import SafetensorError, safe_open

        hint = "fit it: uniavgen cache-latents, or uniavgen train, with train.data.codecs.video=fitted"
        if not path or not Path(path).is_file():
            where = path or "train.data.codecs.video_weights"
            raise UserError("no fitted codec here", where=where, hint=hint, kind="missing-weights")
        try:
            with safe_open(path, framework="pt") as file:
                described = json.loads(file.metadata()["fitted"])
                version = described.pop("format_version")
                parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            fit = FitDescription(**{**described, "shards": tuple(described["shards"])})
            first, rest = (
                BlockBasis(*(parts[f"{name}.{part}"].float() for part in BlockBasis._fields))
                for name in ("first", "rest")
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the fitted codec is damaged: {str(error).splitlines()[0] if str(error) else error!r}",
                where=path,
                hint=f"delete it, then {hint}",
                kind="damaged-codec",
            ) from error
        if version != FORMAT_VERSION:
            raise UserError(
                f"the fitted codec has version {version}, this program reads {FORMAT_VERSION}",
                where=path,
                hint=f"delete it, then {hint}",
                kind="wrong-version",
            )
        codec = FittedCodec(first, rest, fit, device)
        codec.check_shapes(path)
        return codec

    def check_shapes(self, where: object) -> None:
        """Raise UserError of kind `damaged-codec` if tensors do not fit the described size."""
        places = self.fit.height // VIDEO_STRIDE * (self.fit.width // VIDEO_STRIDE)
        for depth, part in ((1, self.first), (LATENT_STRIDE, self.rest)):
            numbers = depth * VIDEO_STRIDE**2 * 3
            wanted = [(places, numbers), (places, VIDEO_CHANNELS, numbers), (places, VIDEO_CHANNELS)]
            if [tuple(tensor.shape) for tensor in part] != wanted:
                size = f"{self.fit.width} x {self.fit.height} px"
                text = f"the fitted codec is damaged: its bases are not for {size}"
                raise UserError(text, where=where, hint="delete it and fit it again", kind="damaged-codec")

    def check_belongs(self, height: int, width: int, crop: str) -> None:
        """Raise UserError of kind `other-codec` unless the codec was fitted to such windows."""
        if (height, width, crop) != (self.fit.height, self.fit.width, self.fit.crop):
            raise UserError(
                f"the codec was fitted to {self.fit.width} x {self.fit.height} px with crop {self.fit.crop}, "
                f"here are {width} x {height} px with crop {crop}",
                where="train.data",
                hint="use the size and crop of the codec, or fit one for these",
                kind="other-codec",
            )

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """See VideoCodec. Raises UserError for frames of another size than it was fitted to."""
        check_frames(frames)
        self.check_belongs(frames.shape[2], frames.shape[3], self.fit.crop)
        pixels = to_unit(frames.to(self.first.mean.device))
        parts = [self._project(pixels[:, :1], 1, self.first)]
        if pixels.shape[1] > 1:
            parts.append(self._project(pixels[:, 1:], LATENT_STRIDE, self.rest))
        return torch.cat(parts, dim=2)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """See VideoCodec."""
        latent = latent.to(self.first.mean.device).float()
        parts = [self._rebuild(latent[:, :, :1], 1, self.first)]
        if latent.shape[2] > 1:
            parts.append(self._rebuild(latent[:, :, 1:], LATENT_STRIDE, self.rest))
        return torch.cat(parts, dim=1).clamp(-1, 1)

    def _project(self, pixels: Tensor, depth: int, block: BlockBasis) -> Tensor:
        """Frames [B, n * depth, H, W, 3] -> latent [B, 48, n, H/16, W/16]."""
        centred = to_blocks(pixels, depth) - block.mean
        latent = torch.einsum("bnpd,pkd->bnpk", centred, block.basis) / block.spread
        return latent.unflatten(2, (pixels.shape[2] // VIDEO_STRIDE, -1)).permute(0, 4, 1, 2, 3).contiguous()

    def _rebuild(self, latent: Tensor, depth: int, block: BlockBasis) -> Tensor:
        """Latent [B, 48, n, h, w] -> frames [B, n * depth, 16h, 16w, 3]."""
        rows, columns = latent.shape[3:]
        coefficients = latent.permute(0, 2, 3, 4, 1).flatten(2, 3) * block.spread
        blocks = torch.einsum("bnpk,pkd->bnpd", coefficients, block.basis) + block.mean
        return from_blocks(blocks, depth, rows, columns)


def fit_codec(blocks: Tensor, fit: FitDescription) -> FittedCodec:
    """Fit a codec to blocks of four frames: uint8 [n, 4, H, W, 3]; equal blocks give equal bytes.

    The basis for one frame is fitted to the first frame of each block.
    """
    with _fixed_threads():
        first, rest = (fit_basis(blocks[:, :depth], depth) for depth in (1, LATENT_STRIDE))
    return FittedCodec(first, rest, replace(fit, blocks=len(blocks)))


def fit_basis(blocks: Tensor, depth: int) -> BlockBasis:
    """Components of each place of blocks uint8 [n, depth, H, W, 3].

    A place with fewer than 48 directions of change gets unit vectors of noise for the others, so the basis
    stays orthonormal.
    """
    fitted = []
    places = blocks.shape[2] // VIDEO_STRIDE * (blocks.shape[3] // VIDEO_STRIDE)
    for place in range(places):
        row, column = divmod(place, blocks.shape[3] // VIDEO_STRIDE)
        top, left = row * VIDEO_STRIDE, column * VIDEO_STRIDE
        seen = blocks[:, :, top : top + VIDEO_STRIDE, left : left + VIDEO_STRIDE]
        fitted.append(_components(to_unit(seen).flatten(1), place))
    mean, basis, deviation = (torch.stack(parts) for parts in zip(*fitted, strict=True))
    spread = deviation.clamp(min=PIXEL_NOISE) ** WHITENING
    # one factor for all, so that latents have about unit variance and keep their relative sizes
    scale = ((deviation / spread) ** 2).mean().sqrt().clamp(min=PIXEL_NOISE)
    return BlockBasis(mean.half().float(), basis.half().float(), spread * scale)


def _components(rows: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [D], leading components [48, D] and their deviations [48] of rows [n, D]."""
    mean = rows.mean(0)
    count = min(VIDEO_CHANNELS + OVERSAMPLED, *rows.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, values, vectors = torch.svd_lowrank(rows - mean, q=count, niter=ITERATIONS)
        filling = torch.randn(rows.shape[1], VIDEO_CHANNELS)
    known = int((values[:VIDEO_CHANNELS] > 1e-4 * values[:1].clamp(min=1e-6)).sum())
    basis = vectors[:, :VIDEO_CHANNELS].T
    if known < VIDEO_CHANNELS:
        # directions without change are arbitrary: take them from noise, orthogonal to the others
        filled = torch.cat([vectors[:, :known], filling[:, : VIDEO_CHANNELS - known]], dim=1)
        basis = torch.linalg.qr(filled)[0].T
    # a component's sign is arbitrary: its largest number is positive
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    basis = basis * largest.sign()
    deviation = ((rows - mean) @ basis.T).square().mean(0).sqrt()
    return mean, basis, deviation


@contextmanager
def _fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _content(first: BlockBasis, rest: BlockBasis, fit: FitDescription) -> bytes:
    """The file of a codec. Its metadata is one entry, because the library orders several at random."""
    from safetensors.torch import save

    tensors = {
        f"{name}.{part}": (tensor if part == "spread" else tensor.half()).cpu().contiguous()
        for name, block in (("first", first), ("rest", rest))
        for part, tensor in zip(BlockBasis._fields, block, strict=True)
    }
    described = {"format_version": FORMAT_VERSION, **asdict(fit)}
    return save(tensors, {"fitted": json.dumps(described, sort_keys=True)})
