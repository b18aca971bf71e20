"""Compute the cached latents of a corpus's shards, in this process or in Ray actors.

A sidecar (`shards.latents`) whose shard has not changed is kept, so a run that was killed, or that finds new
shards, does what is missing. Only the driver, which holds the lock, gives a sidecar its final name. Few
shards are done in this process.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uniavgen.shards.atomic_files import locked
from uniavgen.shards.cluster import ray_running, worth_ray
from uniavgen.shards.config import ErrorBudgetConfig
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import (
    LATENTS_FOLDER,
    LATENTS_LOCK,
    LatentCache,
    LatentSample,
    SidecarPart,
    complete_sidecars,
    latents_digest,
    remove_partial_files,
    remove_stale_latents,
    write_manifest,
    write_sidecar,
)
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.sample import Sample
from uniavgen.shards.tar.manifest import ShardEntry, read_manifest
from uniavgen.shards.tar.tar_writer import commit_tar
from uniavgen.train.batch import LatentBatch, validate_batch
from uniavgen.train.data.cached_latents import cache_fields
from uniavgen.train.data.codec_fitting import codec_path, load_data_codecs
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import Crop, cut_windows, fixed_windows
from uniavgen.train.data.loader import CropEncoder, prefetched

log = logging.getLogger(__name__)

DECODED_AHEAD = 2
"""Samples that a thread decodes ahead of the codecs. Heuristic."""
SKIP_KINDS = ("short-clip", "damaged-sample", "not-finite")
"""Kinds of errors that cost only the clip: it has no latents."""


@dataclass(frozen=True)
class CacheSummary:
    """State of the cache (`shards`, `samples`, `bytes`, clips `passed_over` by reason) and work of this run.

    `made`, `stood` and `removed` count sidecars: new, kept, stale. `failed` has a line for every shard that
    could not be read.
    """

    digest: str
    described: dict[str, str]
    folder: Path
    shards: int
    samples: int
    bytes: int
    passed_over: dict[str, int]
    made: int
    stood: int
    removed: int
    failed: tuple[str, ...]
    seconds: float


def cache_latents(
    shards_dir: Path, config: DataConfig, *, on_progress: Callable[[int, int], None] | None = None
) -> CacheSummary:
    """Make the sidecars that are missing for this configuration, and remove stale ones.

    Doing it again does nothing.

    `on_progress(done, total)` is called for every shard to be done. Raises UserError if there are no shards,
    weights are missing, Ray has too few resources, another run holds the lock, or the disk refuses; finished
    sidecars stay.
    """
    started = time.monotonic()
    manifest = read_manifest(shards_dir)
    if not manifest or not manifest.current:
        raise UserError(
            "no shards of this version here",
            where=shards_dir,
            hint="write them: uniavgen shard",
            kind="no-shards",
        )
    try:
        with locked(shards_dir.parent / LATENTS_LOCK, "another run makes, copies or deletes latents here"):
            return _cache(
                shards_dir, config, manifest.entries, on_progress or (lambda done, total: None), started
            )
    except OSError as error:
        raise UserError(
            f"latents cannot be written: {error.strerror or error}",
            where=shards_dir / LATENTS_FOLDER,
            hint="check rights and space, then run it again",
        ) from error


def _cache(
    shards_dir: Path,
    config: DataConfig,
    shards: tuple[ShardEntry, ...],
    on_progress: Callable[[int, int], None],
    started: float,
) -> CacheSummary:
    wanted = {shard.name: shard.sha256 for shard in shards}
    with _encoders(shards_dir, config, shards) as encoders:
        fields, described = encoders.describe()
        digest = latents_digest(fields)
        folder = shards_dir / LATENTS_FOLDER / digest
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        removed, kept = remove_stale_latents(shards_dir, wanted), complete_sidecars(folder, wanted)
        todo = [shard for shard in shards if shard.name not in {entry.name for entry in kept}]
        failed, made = list[str](), 0
        on_progress(0, len(todo))
        try:
            for number, encoded in enumerate(encoders.encode(folder, todo), start=1):
                if encoded.sidecar:
                    commit_tar(folder, encoded.sidecar.part, encoded.sidecar.entry)
                    made += 1
                else:
                    failed.append(encoded.failure)
                on_progress(number, len(todo))
        finally:
            now = read_manifest(shards_dir)  # the shards may have been rewritten meanwhile
            wanted = {shard.name: shard.sha256 for shard in now.entries} if now else {}
            removed += remove_stale_latents(shards_dir, wanted)
            entries = tuple(complete_sidecars(folder, wanted))
            write_manifest(folder, LatentCache(digest, fields, described, entries))
    reasons = Counter(reason for entry in entries for reason in entry.passed_over.values())
    return CacheSummary(
        digest=digest,
        described=described,
        folder=folder,
        shards=len(entries),
        samples=sum(entry.samples for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        passed_over=dict(reasons),
        made=made,
        stood=len(kept),
        removed=removed,
        failed=tuple(sorted(failed)),
        seconds=time.monotonic() - started,
    )


@contextmanager
def _encoders(
    shards_dir: Path, config: DataConfig, shards: tuple[ShardEntry, ...]
) -> Iterator[LocalEncoder | RayEncoders]:
    cached = config.cached
    if cached.workers > 1 or cached.num_gpus or worth_ray(len(shards), sum(shard.bytes for shard in shards)):
        import ray

        with ray_running():
            pool = RayEncoders(shards_dir, config)
            try:
                yield pool
            finally:
                for actor in pool.actors:
                    ray.kill(actor)
    else:
        yield LocalEncoder(ShardEncoder(shards_dir, config, "cpu"))


@dataclass(frozen=True)
class EncodedShard:
    """The sidecar of one shard, or a line that says why there is none."""

    sidecar: SidecarPart | None
    failure: str = ""


class ShardEncoder:
    """Encodes whole shards; the body of a Ray actor.

    `device` is `cpu` or `cuda`. The codecs are loaded once, on first use.
    """

    def __init__(self, shards_dir: Path, config: DataConfig, device: str) -> None:
        torch.set_num_threads(max(1, int(config.cached.num_cpus)))
        self.shards_dir, self.config, self.device = shards_dir, config, device

    @cached_property
    def encoder(self) -> CropEncoder:
        """Raises UserError if weights are missing."""
        kept = codec_path(self.shards_dir, self.config)
        return CropEncoder(self.config, load_data_codecs(self.config, kept, device=self.device))

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The fields on which the latents depend, and descriptions of the codecs for people."""
        codecs = self.encoder.codecs
        described = {
            "mel": "log-mel",
            "video": codecs.video.description if codecs.video else "",
            "caption": codecs.caption.description if codecs.caption else "",
        }
        return cache_fields(self.config, codecs), described

    def encode(self, folder: Path, shard: ShardEntry) -> EncodedShard:
        """Write the sidecar of one shard under a temporary name.

        A shard that cannot be read is a result, not an error.
        """
        try:
            self._check_digest(shard)
            stream = SampleStream(
                str(self.shards_dir),
                shard.split,
                shards={shard.name: shard.sha256},
                error_budget=ErrorBudgetConfig(max_share=1.0),
            )
            return EncodedShard(write_sidecar(folder, shard.name, shard.sha256, self._latents(stream)))
        except UserError as error:
            if error.kind == "missing-weights":
                raise
            return EncodedShard(None, f"{shard.name}: {error}")

    def _check_digest(self, shard: ShardEntry) -> None:
        """Raise UserError if a tar is not the one of the manifest: its latents would stay wrong."""
        tar = self.shards_dir / shard.name
        try:
            with tar.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"it cannot be read: {error.strerror}", hint="run uniavgen shard") from error
        if digest != shard.sha256:
            raise UserError("its SHA-256 differs from the manifest", hint="remove it and run uniavgen shard")

    def _latents(self, stream: SampleStream) -> Iterator[tuple[str, LatentSample | str]]:
        """(key, latents, or the reason why there are none) of every sample, in the order of the tar."""

        def cut(index: int) -> list[Crop] | UserError:
            try:
                return cut_fixed_windows(stream.sample_by_index(index), self.config)
            except UserError as error:
                return error

        for key, crops in zip(stream.keys, prefetched(cut, range(len(stream)), DECODED_AHEAD), strict=True):
            try:
                if isinstance(crops, UserError):
                    raise crops
                yield key, make_latents(crops, self.encoder)
            except UserError as error:
                if error.kind not in SKIP_KINDS:
                    raise
                log.warning("no latents: %s", error)
                yield key, "short-clip" if error.kind == "short-clip" else "damaged-sample"


def cut_fixed_windows(sample: Sample, config: DataConfig) -> list[Crop]:
    """The fixed windows of a sample, decoded. Raises UserError of kind `short-clip` or `damaged-sample`."""
    return cut_windows(sample, fixed_windows(sample, config), config)


def make_latents(crops: list[Crop], encoder: CropEncoder) -> LatentSample:
    """Latents of the windows of one clip, encoded one by one: memory is that of a micro-batch of 1.

    Raises UserError of kind `not-finite` if a codec gives NaN or infinity.
    """
    batches = [encoder.encode([crop]) for crop in crops]
    for batch in batches:
        validate_batch(batch)
    dtype = encoder.config.cached.dtype
    latents = {
        name: _joined(batches, name).astype(dtype)
        for name in ("video", "reference", "face", "mouth", "mel", "reference_mel")
        if getattr(batches[0], name) is not None
    }
    caption, mask = (_joined(batches[:1], name)[0] for name in ("caption", "caption_mask"))
    return LatentSample(
        **latents,
        start=np.array([crop.start for crop in crops], np.int32),
        reference_inside=np.array([crop.reference_inside for crop in crops]),
        speech=np.array([crop.speech_text.encode() for crop in crops]),
        caption=caption[mask].astype(dtype),
        caption_mask=mask,
    )


def _joined(batches: list[LatentBatch], name: str) -> np.ndarray:
    joined: np.ndarray = torch.cat([getattr(batch, name) for batch in batches]).cpu().numpy()
    return joined


class LocalEncoder:
    """One `ShardEncoder` in this process."""

    def __init__(self, encoder: ShardEncoder) -> None:
        self.encoder = encoder

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        """See ShardEncoder."""
        return self.encoder.describe()

    def encode(self, folder: Path, shards: list[ShardEntry]) -> Iterator[EncodedShard]:
        """Encode the shards one after another."""
        return (self.encoder.encode(folder, shard) for shard in shards)


class RayEncoders:
    """A pool of Ray actors, each with a `ShardEncoder`.

    Raises UserError if the cluster is too small for them.
    """

    def __init__(self, shards_dir: Path, config: DataConfig) -> None:
        import ray

        cached, available = config.cached, ray.cluster_resources()
        for resource, each in (("CPU", cached.num_cpus), ("GPU", cached.num_gpus)):
            needed, has = each * cached.workers, available.get(resource, 0)
            if has < needed:
                raise UserError(
                    f"{cached.workers} actors need {needed:g} {resource}s, Ray has {has:g}",
                    hint="lower train.data.cached.workers",
                    kind="too-small",
                )
        device = "cuda" if cached.num_gpus else "cpu"
        actor = ray.remote(num_cpus=cached.num_cpus, num_gpus=cached.num_gpus)(ShardEncoder)
        self.actors = [actor.remote(shards_dir, config, device) for _ in range(cached.workers)]

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        """See ShardEncoder."""
        import ray

        with _actor_errors():
            described: tuple[dict[str, Any], dict[str, str]] = ray.get(self.actors[0].describe.remote())
            return described

    def encode(self, folder: Path, shards: list[ShardEntry]) -> Iterator[EncodedShard]:
        """Encode the shards in parallel, in the order in which they finish."""
        from ray.util import ActorPool

        with _actor_errors():
            yield from ActorPool(self.actors).map_unordered(
                lambda actor, shard: actor.encode.remote(folder, shard), shards
            )


@contextmanager
def _actor_errors() -> Iterator[None]:
    """Raise an actor's UserError or OSError as it was raised there, and the loss of an actor as UserError."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError | OSError):
            raise cause from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1][:200] if lines else "it exited without an error message"
        raise UserError(
            f"an actor that makes latents was lost: {reason}",
            hint="run the same command again: finished shards are kept",
            kind="worker-lost",
        ) from error
