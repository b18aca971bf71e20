"""Cached latents on the training side: what must agree, how a sample's are made, and batches that are made of them.

In: a stream, a DataConfig, codecs, and the caches that stand beside the shards (`shards.latents`). Out: the batches that
encoding the same windows on line gives, but for the rounding of the storage; no picture and no sound is opened.

A crop of a causal codec's latents is not the latents of a crop, so latents are kept of whole windows: a few of every clip,
`train.data.fixed_windows`. The price: training sees these windows and no others (4 of a clip by default, each with one
reference picture and one reference sound), and a sample's windows are all read where one is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import (
    CACHE_COMMAND,
    LATENTS_FOLDER,
    LatentCache,
    LatentReader,
    LatentSample,
    read_caches,
)
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.sample import Sample
from uniavgen.train.batch import LatentBatch
from uniavgen.train.codec.registry import Codecs
from uniavgen.train.codec.text import encode_speech
from uniavgen.train.config import DataConfig
from uniavgen.train.data.batches import Crop, CropEncoder, cut_windows, fixed_windows
from uniavgen.train.tasks import validate_batch

CODE_VERSION = 1
"""Of all code between media and latents (windows, fitting, codecs); to be raised with any change that alters a latent."""


def cache_fields(config: DataConfig, codecs: Codecs) -> dict[str, Any]:
    """Everything that a cached latent hangs on; without pictures only what the sound hangs on."""
    fields: dict[str, Any] = {"code_version": CODE_VERSION, "mel": codecs.mel.digest}
    fields |= {"frames": config.frames, "reference_frames": config.reference_frames}
    fields |= {"windows": config.cached.windows, "dtype": config.cached.dtype}
    if codecs.video is not None and codecs.caption is not None:
        fields |= {"height": config.height, "width": config.width, "caption_tokens": config.caption_tokens}
        fields["video"] = f"{codecs.video.name} {codecs.video.digest}"
        fields["caption"] = f"{codecs.caption.name} {codecs.caption.digest}"
    return fields


def make_latents(crops: list[Crop], encoder: CropEncoder) -> LatentSample:
    """The latents of one clip's windows, encoded one by one, so that memory is that of a micro-batch of 1.

    Raises UserError of kind `not-finite` where a codec gives NaN or infinity.
    """
    batches = [encoder.encode([crop]) for crop in crops]
    for batch in batches:
        validate_batch(batch)
    kind = encoder.config.cached.dtype
    found = {
        name: _joined(batches, name).astype(kind)
        for name in ("video", "reference", "face", "mel", "reference_mel")
    }
    caption, mask = (_joined(batches[:1], name)[0] for name in ("caption", "caption_mask"))
    return LatentSample(
        **found,
        start=np.array([crop.start for crop in crops], np.int32),
        reference_inside=np.array([crop.reference_inside for crop in crops]),
        speech=np.array([crop.speech.encode() for crop in crops]),
        caption=caption[mask].astype(kind),
        caption_mask=mask,
    )


def _joined(batches: list[LatentBatch], name: str) -> np.ndarray:
    found: np.ndarray = torch.cat([getattr(batch, name) for batch in batches]).cpu().numpy()
    return found


def cut_fixed_windows(sample: Sample, config: DataConfig) -> list[Crop]:
    """The windows of a sample that are cached, decoded. Raises UserError of kind `short-clip` or `damaged-sample`."""
    return cut_windows(sample, fixed_windows(sample, config), config)


@dataclass(frozen=True)
class CachedWindow:
    """One window of a clip's cached latents."""

    key: str
    latents: LatentSample
    window: int

    @property
    def speech(self) -> str:
        """The words spoken in the window."""
        text: bytes = self.latents.speech[self.window]
        return text.decode()

    @property
    def reference_inside(self) -> bool:
        return bool(self.latents.reference_inside[self.window])

    def tensor(self, name: str) -> torch.Tensor:
        """A member of the window as float32."""
        return torch.from_numpy(getattr(self.latents, name)[self.window].astype(np.float32))

    def caption(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The caption's features float32 [Lc, Dc], zero where there is no token, and mask bool [Lc]."""
        mask, told = (
            torch.from_numpy(self.latents.caption_mask),
            torch.from_numpy(self.latents.caption.astype(np.float32)),
        )
        features = torch.zeros(len(mask), told.shape[-1])
        features[mask] = told
        return features, mask


class CachedWindows:
    """Random ones of the cached windows: `train.data.Windows` without media and codecs."""

    def __init__(
        self, stream: SampleStream, reader: LatentReader, config: DataConfig, *, picture: bool
    ) -> None:
        self.stream, self.reader, self.config, self.picture = stream, reader, config, picture

    @property
    def digest(self) -> str:
        """Of the cache that is read."""
        return self.reader.cache.digest

    def take(self, position: int, random: np.random.Generator) -> CachedWindow:
        """See `train.data.Windows`; a clip that was passed over when latents were made is so here, for the same reason."""
        shard, key = self.stream.shard_and_key_at(position)
        if reason := self.reader.skip_reason(shard, key):
            raise UserError(f"clip {key} has no cached latents: {reason}", where=shard, kind=reason)
        self.stream.error_budget.count_read()
        try:
            latents = self.reader.read(shard, key)
        except UserError as error:
            if error.kind == "damaged-sample":
                self.stream.error_budget.record_failure(key, error)
            raise
        return CachedWindow(key, latents, int(random.integers(len(latents.start))))

    def batch_of(self, items: list[CachedWindow]) -> LatentBatch:
        """See `train.data.Windows`."""
        speech_ids, speech_mask = encode_speech([item.speech for item in items], self.config.speech_bytes)
        names = ("mel", "reference_mel", *(("video", "reference", "face") if self.picture else ()))
        members = {name: torch.stack([item.tensor(name) for item in items]) for name in names}
        batch = LatentBatch(
            keys=[item.key for item in items], speech_ids=speech_ids, speech_mask=speech_mask, **members
        )
        if self.picture:
            batch.caption, batch.caption_mask = (
                torch.stack(parts) for parts in zip(*(i.caption() for i in items), strict=True)
            )
        return batch


def find_latents(
    stream: SampleStream, config: DataConfig, codecs: Codecs, begun_with: str | None = None
) -> tuple[CachedWindows | None, str]:
    """The cached windows that a run takes, None where it encodes on line; and one line that says so, and why.

    `begun_with` is the digest that a run used before it was interrupted, "" for none: it goes on as it began. Raises UserError
    of kind `no-latents` where nothing agrees and `train.data.latents` is `require`, or where what the run began with is gone.
    """
    if config.latents == "off" or begun_with == "":
        return (
            None,
            f"latents are encoded on line: {'as this run began' if begun_with == '' else 'train.data.latents is off'}",
        )
    picture = codecs.video is not None
    try:
        cache = _agreeing(stream, config, codecs, begun_with)
        reader = LatentReader(stream.store, cache, stream.shards)
    except UserError as error:
        if error.kind != "no-latents" or config.latents == "require" or begun_with:
            raise
        return None, f"latents are encoded on line: {error.what}; {error.hint}"
    text = (
        f"cached latents {cache.digest} agree: {config.cached.windows} windows a clip, no media are decoded"
    )
    return CachedWindows(stream, reader, config, picture=picture), text


def _agreeing(stream: SampleStream, config: DataConfig, codecs: Codecs, digest: str | None) -> LatentCache:
    """The cache that was made by what this run has. Raises UserError naming the fields in which the nearest one differs."""
    caches, problems = read_caches(stream.store)
    found = [cache for cache in caches if digest is None or cache.digest == digest]
    where = stream.store.full_path(LATENTS_FOLDER)
    if not found:
        what = (
            f"the latents {digest} that this run began with are gone"
            if digest
            else "there are no cached latents"
        )
        raise UserError(
            "; ".join([what, *problems]), where=where, hint=f"make them: {CACHE_COMMAND}", kind="no-latents"
        )
    wanted = cache_fields(config, codecs)
    differing = {cache.digest: differences(cache.fields, wanted) for cache in found}
    # of several that agree (made with other pictures, where only the sound is wanted), the first covers as much as any
    nearest = min(found, key=lambda cache: (len(differing[cache.digest]), -len(cache.entries)))
    if differing[nearest.digest]:
        raise UserError(
            f"cached latents {nearest.digest} were made with another {', '.join(differing[nearest.digest])}",
            where=where,
            hint=f"make them for this configuration: {CACHE_COMMAND}",
            kind="no-latents",
        )
    return nearest


def differences(cached: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """A text for each field in which a cache is not what is wanted: `height (256, here 128)`."""
    return [
        f"{name} ({cached.get(name)}, here {value})"
        for name, value in wanted.items()
        if cached.get(name) != value
    ]
