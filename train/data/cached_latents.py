"""Read cached latents in training: find the cache that fits the run, make batches of it, open no media.

Batches equal those that encoding the same windows gives, except for the rounding of the storage type. Latents
are cached of whole windows, since a crop of a causal codec's latents is not the latents of a crop. The price:
training sees only the `fixed_windows` of a clip (4 by default, each with one reference frame and one
reference audio), and all windows of a clip are read where one is used.
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
from uniavgen.train.batch import LatentBatch
from uniavgen.train.codec.registry import Codecs
from uniavgen.train.codec.text import encode_speech
from uniavgen.train.data.config import DataConfig

CODE_VERSION = 1
"""Version of all code between media and latents (windows, fitting, codecs).

Raise it with any change that alters a latent.
"""


FIELD_DEFAULTS: dict[str, Any] = {"crop": "centre", "relative": False, "mouth_mask": False}
"""Values of fields that caches of 0.5 and older do not have, so that their digests stay."""


def cache_fields(config: DataConfig, codecs: Codecs) -> dict[str, Any]:
    """Everything on which a cached latent depends; without a video codec, on which its audio depends.

    The digest of a cache is a hash of these fields.
    """
    fields: dict[str, Any] = {"code_version": CODE_VERSION, "mel": codecs.mel.digest}
    fields |= {"frames": config.frames, "reference_frames": config.reference_frames}
    fields |= {"windows": config.cached.windows, "dtype": config.cached.dtype}
    if codecs.video is not None and codecs.caption is not None:
        fields |= {"height": config.height, "width": config.width, "caption_tokens": config.caption_tokens}
        fields["video"] = f"{codecs.video.name} {codecs.video.digest}"
        fields["caption"] = f"{codecs.caption.name} {codecs.caption.digest}"
        added = {name: getattr(config, name) for name in FIELD_DEFAULTS}
        fields |= {name: value for name, value in added.items() if value != FIELD_DEFAULTS[name]}
    return fields


@dataclass(frozen=True)
class CachedWindow:
    """One window of a clip's cached latents."""

    key: str
    latents: LatentSample
    window: int

    @property
    def speech_text(self) -> str:
        """The words spoken in the window."""
        text: bytes = self.latents.speech[self.window]
        return text.decode()

    @property
    def reference_inside(self) -> bool:
        """Whether a reference was taken from the window itself."""
        return bool(self.latents.reference_inside[self.window])

    @property
    def voice_inside(self) -> bool:
        """Whether the reference voice may overlap the window; a cache does not tell which reference does."""
        return self.reference_inside

    def tensor(self, name: str) -> torch.Tensor:
        """A member of the window as float32."""
        return torch.from_numpy(getattr(self.latents, name)[self.window].astype(np.float32))

    def caption(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Caption features float32 [Lc, Dc], zero where there is no token, and mask bool [Lc]."""
        mask = torch.from_numpy(self.latents.caption_mask)
        of_tokens = torch.from_numpy(self.latents.caption.astype(np.float32))
        features = torch.zeros(len(mask), of_tokens.shape[-1])
        features[mask] = of_tokens
        return features, mask


class CachedWindows:
    """Random windows out of the cached ones: a `train.data.loader.Windows` without media and codecs."""

    def __init__(
        self, stream: SampleStream, reader: LatentReader, config: DataConfig, *, with_video: bool
    ) -> None:
        self.stream, self.reader, self.config, self.with_video = stream, reader, config, with_video

    @property
    def digest(self) -> str:
        """Digest of the cache."""
        return self.reader.cache.digest

    def take(self, position: int, random: np.random.Generator, *, needs_voice: bool = False) -> CachedWindow:
        """See Windows.

        A clip that the cache skipped raises UserError of the kind for which it was skipped.
        """
        shard, key = self._shard_and_key(position)
        self.stream.error_budget.count_read()
        try:
            latents = self.reader.read(shard, key)
        except UserError as error:
            if error.kind != "damaged-sample":
                raise
            # shards that are written anew lose their latents
            if self._follow_shards():
                return self.take(position, random, needs_voice=needs_voice)
            self.stream.error_budget.record_failure(key, error)
            raise
        drawn = int(random.integers(len(latents.start)))
        if needs_voice and latents.reference_inside[drawn]:
            outside = np.flatnonzero(~latents.reference_inside)
            if not len(outside):
                raise UserError(
                    f"clip {key} has no cached window with a reference voice from outside of it",
                    where=shard,
                    kind="no-voice",
                )
            drawn = int(outside[drawn % len(outside)])
        return CachedWindow(key, latents, drawn)

    def _shard_and_key(self, position: int) -> tuple[str, str]:
        """Raises UserError if the sample has no latents."""
        shard, key = self.stream.shard_and_key_at(position)
        if not self.reader.covers(shard):
            raise UserError(f"clip {key} has no cached latents yet", where=shard, kind="gone-sample")
        if reason := self.reader.skip_reason(shard, key):
            raise UserError(f"clip {key} has no cached latents: {reason}", where=shard, kind=reason)
        return shard, key

    def _follow_shards(self) -> bool:
        """Read the cache of the present shards, if those of the stream are gone; whether it changed."""
        if not self.stream.follow_shards():
            return False
        caches, _ = read_caches(self.stream.store)
        cache = next((cache for cache in caches if cache.digest == self.digest), self.reader.cache)
        self.reader = LatentReader(self.stream.store, cache, self.stream.shards, partial=True)
        self.stream.notices += uncovered_notice(self.reader)
        return True

    def make_batch(self, windows: list[CachedWindow]) -> LatentBatch:
        """See Windows."""
        texts = [window.speech_text for window in windows]
        speech_ids, speech_mask = encode_speech(texts, self.config.speech_bytes)
        names = ["mel", "reference_mel", *(("video", "reference", "face") if self.with_video else ())]
        names += ["mouth"] if self.with_video and self.config.mouth_mask else []
        members = {name: torch.stack([window.tensor(name) for window in windows]) for name in names}
        batch = LatentBatch(
            keys=[window.key for window in windows],
            speech_ids=speech_ids,
            speech_mask=speech_mask,
            **members,
        )
        if self.with_video:
            captions = [window.caption() for window in windows]
            batch.caption, batch.caption_mask = (torch.stack(parts) for parts in zip(*captions, strict=True))
        return batch


def find_latents(
    stream: SampleStream, config: DataConfig, codecs: Codecs, begun_with: str | None = None
) -> tuple[CachedWindows | None, str]:
    """The cached windows that a run reads (None: it encodes during training), and one line that says why.

    `begun_with`: digest that the run used before it was interrupted, "" for none: it continues as it began.
    Raises UserError of kind `no-latents` if no cache fits and `train.data.latents` is `require`, or if the
    cache of `begun_with` is gone.
    """
    if config.latents == "off" or begun_with == "":
        reason = "as this run began" if begun_with == "" else "train.data.latents is off"
        return None, f"latents are encoded during training: {reason}"
    try:
        cache = _matching_cache(stream, config, codecs, begun_with)
        reader = LatentReader(stream.store, cache, stream.shards, partial=bool(begun_with))
        stream.notices += uncovered_notice(reader)
    except UserError as error:
        if error.kind != "no-latents" or config.latents == "require" or begun_with:
            raise
        return None, f"latents are encoded during training: {error.what}; {error.hint}"
    count = config.cached.windows
    line = f"cached latents {cache.digest} are read: {count} windows a clip, no media are decoded"
    return CachedWindows(stream, reader, config, with_video=codecs.video is not None), line


def uncovered_notice(reader: LatentReader) -> list[str]:
    """A line for people if shards of a stage that began on cached latents have none any more."""
    if not reader.missing:
        return []
    return [
        f"{len(reader.missing)} shards were written anew and have no cached latents: their samples are left "
        f"out until the stage is resumed after {CACHE_COMMAND}"
    ]


def _matching_cache(
    stream: SampleStream, config: DataConfig, codecs: Codecs, digest: str | None
) -> LatentCache:
    """The cache that fits this run. Raises UserError naming the fields in which the nearest cache differs."""
    caches, problems = read_caches(stream.store)
    candidates = [cache for cache in caches if digest is None or cache.digest == digest]
    where = stream.store.full_path(LATENTS_FOLDER)
    if not candidates:
        missing = (
            f"the latents {digest} that this run began with are gone"
            if digest
            else "there are no cached latents"
        )
        raise UserError(
            "; ".join([missing, *problems]),
            where=where,
            hint=f"make them: {CACHE_COMMAND}",
            kind="no-latents",
        )
    wanted = cache_fields(config, codecs)
    if codecs.video is not None:
        wanted = FIELD_DEFAULTS | wanted
    differing = {cache.digest: differing_fields(cache.fields, wanted) for cache in candidates}
    # several caches may fit an audio-only stage, made with other video codecs: the one with most shards
    nearest = min(candidates, key=lambda cache: (len(differing[cache.digest]), -len(cache.entries)))
    if differing[nearest.digest]:
        raise UserError(
            f"cached latents {nearest.digest} were made with another {', '.join(differing[nearest.digest])}",
            where=where,
            hint=f"make them for this configuration: {CACHE_COMMAND}",
            kind="no-latents",
        )
    return nearest


def differing_fields(cached: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """A text for each wanted field that a cache has otherwise, such as `height (256, here 128)`."""
    return [
        f"{name} ({cached.get(name, FIELD_DEFAULTS.get(name))}, here {value})"
        for name, value in wanted.items()
        if cached.get(name, FIELD_DEFAULTS.get(name)) != value
    ]
