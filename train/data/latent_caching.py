"""Computes the cached latents of a corpus's shards: Ray actors that load the codecs once take one shard after another.

In: a `shards` folder and a DataConfig. Out: sidecars and their manifest (`shards.latents`). Only the driver, which holds
the lock, gives a sidecar its name; one that stands and is of the shard as it is now is not made again, so a run that is
killed or that finds new shards does what is left. Few shards are done in this process.
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
from uniavgen.shards.tar.manifest import ShardEntry, read_manifest
from uniavgen.shards.tar.tar_writer import put_in_place
from uniavgen.train.codec.registry import load_codecs
from uniavgen.train.config import DataConfig
from uniavgen.train.data.batches import Crop, CropEncoder, prefetched
from uniavgen.train.data.cached_latents import cache_fields, cut_fixed_windows, make_latents

log = logging.getLogger(__name__)

DECODED_AHEAD = 2
"""Samples decoded in a thread while an actor's codecs are at work."""
PASSED_OVER = ("short-clip", "damaged-sample", "not-finite")
"""Kinds of faults that cost their clip only."""


@dataclass(frozen=True)
class CacheSummary:
    """What stands now (`shards`, `samples`, `bytes`, clips `passed_over` by reason) and what this run did.

    `failed` has a line for every shard that could not be read; the others are done.
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


@dataclass(frozen=True)
class Made:
    """What came of one shard: its sidecar, or the line that says why there is none."""

    sidecar: SidecarPart | None
    failure: str = ""


class ShardEncoder:
    """What an actor does; `device` is `cpu` or `cuda`. The codecs are loaded when they are first needed, and once."""

    def __init__(self, shards_dir: Path, config: DataConfig, device: str) -> None:
        import torch

        torch.set_num_threads(max(1, int(config.cached.num_cpus)))
        self.shards_dir, self.config, self.device = shards_dir, config, device

    @cached_property
    def encoder(self) -> CropEncoder:
        """Raises UserError where weights are missing."""
        return CropEncoder(self.config, load_codecs(self.config.codecs, device=self.device))

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What the latents hang on, and the codecs in words."""
        codecs = self.encoder.codecs
        named = {"mel": "log-mel", "video": codecs.video.description if codecs.video else ""}
        return cache_fields(self.config, codecs), named | {
            "caption": codecs.caption.description if codecs.caption else ""
        }

    def encode(self, folder: Path, shard: ShardEntry) -> Made:
        """The sidecar of one shard, beside its place. A shard that cannot be read is an answer, not an error."""
        try:
            self._check(shard)
            own = {shard.name: shard.sha256}
            stream = SampleStream(
                str(self.shards_dir), shard.split, shards=own, error_budget=ErrorBudgetConfig(max_share=1.0)
            )
            return Made(write_sidecar(folder, shard.name, shard.sha256, self._latents(stream)))
        except UserError as error:
            if error.kind == "missing-weights":
                raise
            return Made(None, f"{shard.name}: {error}")

    def _check(self, shard: ShardEntry) -> None:
        """Raise UserError where a tar is not what the manifest says: its latents would stay wrong when it is mended."""
        tar = self.shards_dir / shard.name
        try:
            with tar.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"it cannot be read: {error.strerror}", hint="run uniavgen shard") from error
        if digest != shard.sha256:
            raise UserError("its SHA-256 is not the manifest's", hint="remove it and run uniavgen shard")

    def _latents(self, stream: SampleStream) -> Iterator[tuple[str, LatentSample | str]]:
        def cut(place: int) -> list[Crop] | UserError:
            try:
                return cut_fixed_windows(stream.sample_by_index(place), self.config)
            except UserError as error:
                return error

        for key, crops in zip(stream.keys, prefetched(cut, range(len(stream)), DECODED_AHEAD), strict=True):
            try:
                if isinstance(crops, UserError):
                    raise crops
                yield key, make_latents(crops, self.encoder)
            except UserError as error:
                if error.kind not in PASSED_OVER:
                    raise
                log.warning("no latents: %s", error)
                yield key, "short-clip" if error.kind == "short-clip" else "damaged-sample"


class EncoderHere:
    """One encoder in this process."""

    def __init__(self, encoder: ShardEncoder) -> None:
        self.encoder = encoder

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        return self.encoder.describe()

    def encode(self, folder: Path, shards: list[ShardEntry]) -> Iterator[Made]:
        return (self.encoder.encode(folder, shard) for shard in shards)


class EncodersOnRay:
    """A pool of actors, each with an encoder. Raises UserError where the cluster is too small for them."""

    def __init__(self, shards_dir: Path, config: DataConfig) -> None:
        import ray

        cached, there = config.cached, ray.cluster_resources()
        for what, each in (("CPU", cached.num_cpus), ("GPU", cached.num_gpus)):
            if there.get(what, 0) < each * cached.workers:
                raise UserError(
                    f"{cached.workers} actors need {each * cached.workers:g} {what}s, Ray has {there.get(what, 0):g}",
                    hint="lower train.data.cached.workers",
                    kind="too-small",
                )
        device = "cuda" if cached.num_gpus else "cpu"
        actor = ray.remote(num_cpus=cached.num_cpus, num_gpus=cached.num_gpus)(ShardEncoder)
        self.actors = [actor.remote(shards_dir, config, device) for _ in range(cached.workers)]

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        import ray

        with _told():
            found: tuple[dict[str, Any], dict[str, str]] = ray.get(self.actors[0].describe.remote())
            return found

    def encode(self, folder: Path, shards: list[ShardEntry]) -> Iterator[Made]:
        """In the order in which they get done."""
        from ray.util import ActorPool

        with _told():
            yield from ActorPool(self.actors).map_unordered(
                lambda actor, shard: actor.encode.remote(folder, shard), shards
            )


@contextmanager
def _told() -> Iterator[None]:
    """An actor's error as it was raised there, its death in one line."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError | OSError):
            raise cause from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"an actor that makes latents was lost: {(lines or ['it ended without a word'])[-1][:200]}",
            hint="run the same command again: finished shards stay",
            kind="worker-lost",
        ) from error


@contextmanager
def _encoders(
    shards_dir: Path, config: DataConfig, shards: tuple[ShardEntry, ...]
) -> Iterator[EncoderHere | EncodersOnRay]:
    cached = config.cached
    if cached.workers > 1 or cached.num_gpus or worth_ray(len(shards), sum(shard.bytes for shard in shards)):
        import ray

        with ray_running():
            pool = EncodersOnRay(shards_dir, config)
            try:
                yield pool
            finally:
                for actor in pool.actors:
                    ray.kill(actor)
    else:
        yield EncoderHere(ShardEncoder(shards_dir, config, "cpu"))


def cache_latents(
    shards_dir: Path, config: DataConfig, *, on_progress: Callable[[int, int], None] | None = None
) -> CacheSummary:
    """Bring the cache of this configuration in line with the shards; doing it again does nothing.

    `on_progress(done, total)` is called for every shard to be done. Raises UserError where there are no shards, weights are
    missing, Ray has too little for the actors, another run is at work, or the disk refuses; what was finished stays.
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
        with locked(shards_dir.parent / LATENTS_LOCK, "another run makes, copies or forgets latents here"):
            return _cache(
                shards_dir, config, manifest.entries, on_progress or (lambda done, total: None), started
            )
    except OSError as error:
        text = f"latents cannot be written: {error.strerror or error}"
        raise UserError(
            text, where=shards_dir / LATENTS_FOLDER, hint="check rights and space, then run it again"
        ) from error


def _cache(
    shards_dir: Path,
    config: DataConfig,
    shards: tuple[ShardEntry, ...],
    on_progress: Callable[[int, int], None],
    started: float,
) -> CacheSummary:
    wanted = {shard.name: shard.sha256 for shard in shards}
    with _encoders(shards_dir, config, shards) as work:
        fields, described = work.describe()
        digest = latents_digest(fields)
        folder = shards_dir / LATENTS_FOLDER / digest
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        removed, stood = remove_stale_latents(shards_dir, wanted), complete_sidecars(folder, wanted)
        cache = LatentCache(digest, fields, described)
        todo = [shard for shard in shards if shard.name not in {entry.name for entry in stood}]
        failed, made = list[str](), 0
        on_progress(0, len(todo))
        try:
            for number, found in enumerate(work.encode(folder, todo), start=1):
                if found.sidecar:
                    put_in_place(folder, found.sidecar.part, found.sidecar.entry)
                    made += 1
                else:
                    failed.append(found.failure)
                on_progress(number, len(todo))
        finally:
            now = read_manifest(shards_dir)  # shards may have been written anew meanwhile
            wanted = {shard.name: shard.sha256 for shard in now.entries} if now else {}
            removed += remove_stale_latents(shards_dir, wanted)
            entries = tuple(complete_sidecars(folder, wanted))
            write_manifest(folder, LatentCache(cache.digest, cache.fields, cache.described, entries))
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
        stood=len(stood),
        removed=removed,
        failed=tuple(sorted(failed)),
        seconds=time.monotonic() - started,
    )
