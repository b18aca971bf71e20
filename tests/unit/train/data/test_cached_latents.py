"""Cached latents: equal to encoding the same windows, no media opened, used only if all fields match."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_samples import make_sample
from made_shards import write_tars
from paths import ROOT

from uniavgen.shards import weights
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import LATENTS_FOLDER, cache_folders, remove_stale_latents
from uniavgen.shards.latents.verify import latent_checks, verify_sidecar
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.tar.manifest import read_manifest
from uniavgen.train.codec.registry import CodecConfig, Codecs, load_codecs
from uniavgen.train.data import crops
from uniavgen.train.data.cached_latents import CachedWindow, find_latents
from uniavgen.train.data.config import CacheConfig, DataConfig
from uniavgen.train.data.crops import Crop, cut_windows, fixed_windows, random_for
from uniavgen.train.data.latent_caching import CacheSummary, cache_latents
from uniavgen.train.data.loader import BatchLoader, CropEncoder

CONFIG = DataConfig(
    frames=9,
    height=64,
    width=64,
    reference_frames=5,
    caption_tokens=12,
    speech_bytes=16,
    cached=CacheConfig(windows=3),
)


@pytest.fixture(scope="module")
def codecs() -> Codecs:
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    return load_codecs(CONFIG.codecs)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, codecs: Codecs) -> tuple[Path, CacheSummary]:
    """Two train tars and a val tar: six usable clips, one too short for a window, one whose video is
    damaged."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("corpus") / "shards"
    samples = [make_sample(f"clip{i}", 14 + 5 * i, seed=i) for i in range(5)]
    damaged = replace(make_sample("clip8", 20), video=b"no video")
    write_tars(folder, [samples[:3], [*samples[3:], damaged, make_sample("clip9", 4)]])
    write_tars(folder, [[make_sample("valid0", 20, seed=9)]], "val")
    return folder, cache_latents(folder, CONFIG)


def changed(**changes: Any) -> DataConfig:
    return CONFIG.model_copy(update=changes)


def copied(cached: tuple[Path, CacheSummary], folder: Path) -> Path:
    return Path(shutil.copytree(cached[0], folder / "shards"))


def sidecars(shards: Path) -> dict[str, tuple[bytes, int]]:
    paths = [path for folder in cache_folders(shards) for path in sorted(folder.iterdir()) if path.is_file()]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_summary_counts_sidecars_and_clips_without_latents(cached: tuple[Path, CacheSummary]) -> None:
    folder, summary = cached
    assert (summary.shards, summary.samples, summary.made, summary.stood, summary.failed) == (3, 6, 3, 0, ())
    assert summary.passed_over == {"short-clip": 1, "damaged-sample": 1}
    assert summary.bytes == sum(path.stat().st_size for path in summary.folder.glob("*.tar"))
    assert summary.folder == folder / LATENTS_FOLDER / summary.digest


def test_cached_batches_equal_encoded_batches_up_to_float16(
    cached: tuple[Path, CacheSummary], codecs: Codecs
) -> None:
    stream = SampleStream(str(cached[0]))
    windows, line = find_latents(stream, CONFIG, codecs)
    assert windows is not None
    assert "no media are decoded" in line
    items = [
        windows.take(position, random_for(0, 0, position))
        for position in range(7)
        if usable(stream, position)
    ]
    assert len(items) == 5
    same = [crop_of(stream, item) for item in items]
    expected, batch = CropEncoder(CONFIG, codecs).encode(same), windows.make_batch(items)
    assert batch.keys == expected.keys
    for name in ("speech_ids", "speech_mask", "caption_mask", "face"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    for name in ("video", "reference", "mel", "reference_mel", "caption"):
        here, there = getattr(batch, name), getattr(expected, name)
        assert here.dtype == torch.float32
        # float16 keeps 11 bits of every number; under its smallest normal number, 2^-25 is half the step
        assert bool(((here - there).abs() <= there.abs() * 2**-11 + 2**-25).all()), name
        assert (here - there).std() < 1e-3 * there.std(), name


def usable(stream: SampleStream, position: int) -> bool:
    return stream.shard_and_key_at(position)[1] not in ("clip8", "clip9")


def crop_of(stream: SampleStream, item: CachedWindow) -> Crop:
    sample = stream.sample_by_key(item.key)
    return cut_windows(sample, [fixed_windows(sample, CONFIG)[item.window]], CONFIG)[0]


def test_cached_batches_equal_encoded_batches_exactly_in_float32(tmp_path: Path, codecs: Codecs) -> None:
    config = changed(cached=CacheConfig(windows=2, dtype="float32"))
    folder = write_tars(tmp_path / "shards", [[make_sample("a", 30, seed=4)]])
    cache_latents(folder, config)
    stream = SampleStream(str(folder))
    windows, _ = find_latents(stream, config, codecs)
    assert windows is not None
    item = windows.take(0, random_for(0, 0, 0))
    sample = stream.sample_by_key("a")
    crop = cut_windows(sample, [fixed_windows(sample, config)[item.window]], config)[0]
    expected, batch = CropEncoder(config, codecs).encode([crop]), windows.make_batch([item])
    for name in ("video", "reference", "mel", "reference_mel", "face", "caption"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name


def test_cached_batches_open_no_media(
    cached: tuple[Path, CacheSummary], tmp_path: Path, codecs: Codecs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tars of the shards are gone: only their manifest and indexes, and the latents, are left."""
    folder = copied(cached, tmp_path)
    loader = cached_loader(folder, codecs)
    before = [loader.load(step, range(4)) for step in range(4)]
    for tar in folder.glob("*.tar"):
        tar.unlink()
    for name in ("decode_video", "decode_audio"):
        monkeypatch.delattr(crops, name)
    loader = cached_loader(folder, codecs)
    for step, loaded in enumerate(before):
        again = loader.load(step, range(4))
        assert again.batch.keys == loaded.batch.keys
        assert torch.equal(again.batch.video, loaded.batch.video)  # type: ignore[arg-type]
        assert again.counts == loaded.counts
    assert sum(loaded.counts["short"] + loaded.counts["damaged"] for loaded in before) > 0


def test_cached_latents_are_read_from_an_object_store(
    cached: tuple[Path, CacheSummary], codecs: Codecs
) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(cached[0]), "/cached/shards", recursive=True)
    try:
        there = cached_loader("memory://cached/shards", codecs).load(1, range(4))
        here = cached_loader(cached[0], codecs).load(1, range(4))
        assert there.batch.keys == here.batch.keys
        assert torch.equal(there.batch.mel, here.batch.mel)
    finally:
        store.rm("/cached", recursive=True)


def cached_loader(folder: Path | str, codecs: Codecs) -> BatchLoader:
    stream = SampleStream(str(folder))
    windows, line = find_latents(stream, CONFIG, codecs)
    assert windows is not None, line
    return BatchLoader(stream, CONFIG, windows, 4)


def test_cached_batch_is_independent_of_its_split(cached: tuple[Path, CacheSummary], codecs: Codecs) -> None:
    whole = cached_loader(cached[0], codecs).load(3, range(4)).batch
    halves = [cached_loader(cached[0], codecs).load(3, indices).batch for indices in (range(2), range(2, 4))]
    assert whole.keys == halves[0].keys + halves[1].keys
    assert torch.equal(whole.mel, torch.cat([half.mel for half in halves]))


def test_audio_only_training_reads_the_audio_of_a_cache_with_video(
    cached: tuple[Path, CacheSummary],
) -> None:
    audio_only = load_codecs(CONFIG.codecs, with_video=False)
    stream = SampleStream(str(cached[0]))
    windows, _ = find_latents(stream, changed(height=128, width=96), audio_only)
    assert windows is not None
    batch = BatchLoader(stream, CONFIG, windows, 2).load(0, range(2)).batch
    assert batch.video is None
    assert batch.mel.shape == (2, 100, CONFIG.mels)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"height": 96}, "height (64, here 96)"),
        ({"frames": 13}, "frames (9, here 13)"),
        ({"reference_frames": 9}, "reference_frames (5, here 9)"),
        ({"caption_tokens": 8}, "caption_tokens (12, here 8)"),
        ({"cached": CacheConfig(windows=4)}, "windows (3, here 4)"),
        ({"cached": CacheConfig(windows=3, dtype="float32")}, "dtype (float16, here float32)"),
    ],
)
def test_differing_fields_are_named_and_the_cache_is_not_read(
    cached: tuple[Path, CacheSummary], codecs: Codecs, changes: dict[str, Any], text: str
) -> None:
    stream = SampleStream(str(cached[0]))
    windows, line = find_latents(stream, changed(**changes), codecs)
    assert windows is None
    assert line.startswith("latents are encoded during training: ")
    assert text in line
    assert "\n" not in line
    with pytest.raises(UserError, match="were made with another") as caught:
        find_latents(stream, changed(**changes, latents="require"), codecs)
    assert text in str(caught.value)
    assert caught.value.kind == "no-latents"


def test_changed_codec_weights_do_not_match(cached: tuple[Path, CacheSummary], codecs: Codecs) -> None:
    other = load_codecs(CONFIG.codecs)
    assert other.caption is not None
    with torch.no_grad():
        next(other.caption.model.parameters())[0, 0] += 1e-3
    _, line = find_latents(SampleStream(str(cached[0])), CONFIG, other)
    assert "caption (minilm " in line
    assert "video" not in line


def test_reason_for_not_reading_a_cache_is_given(
    cached: tuple[Path, CacheSummary], tmp_path: Path, codecs: Codecs
) -> None:
    stream = SampleStream(str(cached[0]))
    assert find_latents(stream, changed(latents="off"), codecs) == (
        None,
        "latents are encoded during training: train.data.latents is off",
    )
    folder = copied(cached, tmp_path)
    (manifest,) = folder.glob(f"{LATENTS_FOLDER}/*/manifest.json")
    manifest.write_text(manifest.read_text()[:100])
    windows, line = find_latents(SampleStream(str(folder)), CONFIG, codecs)
    assert windows is None
    assert "no cached latents; the manifest of the latents is damaged" in line
    shutil.rmtree(folder / LATENTS_FOLDER)
    with pytest.raises(UserError, match="there are no cached latents.*make them: uniavgen cache-latents"):
        find_latents(SampleStream(str(folder)), changed(latents="require"), codecs)


def test_resumed_run_keeps_its_source_of_latents(
    cached: tuple[Path, CacheSummary], tmp_path: Path, codecs: Codecs
) -> None:
    folder, summary = cached
    stream = SampleStream(str(folder))
    assert find_latents(stream, CONFIG, codecs, "")[0] is None
    windows, _ = find_latents(stream, CONFIG, codecs, summary.digest)
    assert windows is not None
    assert windows.digest == summary.digest
    with pytest.raises(UserError, match="the latents 0123 that this run began with are gone"):
        find_latents(stream, CONFIG, codecs, "0123")


def test_appended_shards_are_cached_and_kept_sidecars_are_not_touched(
    cached: tuple[Path, CacheSummary], tmp_path: Path, codecs: Codecs
) -> None:
    folder = copied(cached, tmp_path)
    before = sidecars(folder)
    again = cache_latents(folder, CONFIG)
    assert (again.made, again.stood) == (0, 3)
    assert sidecars(folder) == before
    write_tars(
        folder, [[make_sample(f"more{i}", 20, seed=i)] for i in range(2)], "val"
    )  # one replaced, one new
    _, line = find_latents(SampleStream(str(folder), "val"), CONFIG, codecs)
    assert "cover 0 of 2 shards, not val-000000.tar; run uniavgen cache-latents" in line
    more = cache_latents(folder, CONFIG)
    assert (more.made, more.stood, more.removed, more.shards) == (2, 2, 1, 4)
    assert all(sidecars(folder)[name] == stood for name, stood in before.items() if name.startswith("train"))
    assert find_latents(SampleStream(str(folder), "val"), CONFIG, codecs)[0] is not None


def test_caching_is_deterministic(cached: tuple[Path, CacheSummary], tmp_path: Path) -> None:
    folder = copied(cached, tmp_path)
    shutil.rmtree(folder / LATENTS_FOLDER)
    cache_latents(folder, CONFIG)
    assert {name: content for name, (content, _) in sidecars(folder).items()} == {
        name: content for name, (content, _) in sidecars(cached[0]).items()
    }


def test_damaged_shard_is_reported_and_the_others_are_cached(
    cached: tuple[Path, CacheSummary], tmp_path: Path
) -> None:
    folder = copied(cached, tmp_path)
    shutil.rmtree(folder / LATENTS_FOLDER)
    tar = folder / "train-000001.tar"
    good = tar.read_bytes()
    tar.write_bytes(good[:700] + b"!" + good[701:])
    summary = cache_latents(folder, CONFIG)
    assert (summary.made, summary.shards) == (2, 2)
    assert summary.failed == (
        "train-000001.tar: its SHA-256 differs from the manifest; remove it and run uniavgen shard",
    )
    tar.write_bytes(good)
    assert cache_latents(folder, CONFIG).made == 1


def test_full_disk_raises_and_finished_sidecars_stay(
    cached: tuple[Path, CacheSummary], tmp_path: Path
) -> None:
    """The system refuses files over 100 kB, as a full disk would: the val sidecar is smaller, those of train
    are not."""
    folder = copied(cached, tmp_path)
    (small,) = folder.glob(f"{LATENTS_FOLDER}/*/val-000000.tar")
    assert small.stat().st_size < 100_000 < (small.parent / "train-000001.tar").stat().st_size
    for name in ("train-000001.tar", "train-000001.tar.index.npz"):
        (small.parent / name).unlink()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(
            UserError, match="latents cannot be written: File too large .*; check rights and space"
        ):
            cache_latents(folder, CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(folder.rglob("*.part"))
    again = cache_latents(folder, CONFIG)
    assert (again.made, again.stood) == (1, 2)


def test_damaged_latents_are_replaced_and_reported(
    cached: tuple[Path, CacheSummary], tmp_path: Path, codecs: Codecs, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(cached, tmp_path)
    (tar,) = folder.glob(f"{LATENTS_FOLDER}/*/train-000000.tar")
    content = bytearray(tar.read_bytes())
    content[5000] ^= 8
    tar.write_bytes(content)
    loader = cached_loader(folder, codecs)
    with caplog.at_level(logging.WARNING):
        keys = {key for step in range(8) for key in loader.load(step, range(4)).batch.keys}
    assert set(loader.stream.error_budget.damaged) == {"clip0"}
    assert keys == {"clip1", "clip2", "clip3", "clip4"}
    assert "the latents of clip0 changed since they were written" in caplog.text
    shards = {entry.name: entry for entry in read_manifest(folder).entries}  # type: ignore[union-attr]
    checks, defects = latent_checks(folder, shards)
    assert defects == []
    defects = {check.entry.name: verify_sidecar(check) for check in checks}
    assert [len(lines) for lines in defects.values()] == [2, 0, 0]
    assert "its SHA-256 differs from the manifest" in defects["train-000000.tar"][0]
    assert "clip clip0: its bytes changed since they were written" in defects["train-000000.tar"][1]


KILLED = """
import os, signal, sys
from pathlib import Path
import uniavgen.train.data.latent_caching
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.latent_caching import cache_latents
from uniavgen.train.codec.registry import load_codecs

seen = 0
def hook(name, details):
    global seen
    if name in ("open", "os.rename", "os.remove") and "/latents" in str(details):
        seen += 1
        if seen == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
config = DataConfig.model_validate_json(sys.argv[3])
load_codecs(config.codecs)  # what takes long, once for all children
for event in sys.argv[2].split(","):
    child = os.fork()
    if not child:
        sys.argv[2] = event
        sys.addaudithook(hook)
        cache_latents(Path(sys.argv[1]) / event / "shards", config)
        os._exit(0)
    print(event, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_run_after_a_kill_gives_the_same_sidecars(cached: tuple[Path, CacheSummary], tmp_path: Path) -> None:
    events = (4, 12, 20)
    for event in events:
        shutil.copytree(
            cached[0], tmp_path / str(event) / "shards", ignore=shutil.ignore_patterns(LATENTS_FOLDER)
        )
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(tmp_path),
        ",".join(map(str, events)),
        CONFIG.model_dump_json(),
    ]
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # no threads before the fork
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT, env=env)
    codes = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert codes == [-signal.SIGKILL] * len(events), done.stdout + done.stderr
    expected = {name: content for name, (content, _) in sidecars(cached[0]).items()}
    for event in events:
        folder = tmp_path / str(event) / "shards"
        cache_latents(folder, CONFIG)
        assert {name: content for name, (content, _) in sidecars(folder).items()} == expected, (
            f"killed at event {event}"
        )


@pytest.mark.slow
def test_ray_actors_make_the_same_sidecars_and_report_missing_resources(
    cached: tuple[Path, CacheSummary], tmp_path: Path
) -> None:
    import ray

    folder = copied(cached, tmp_path)
    shutil.rmtree(folder / LATENTS_FOLDER)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        summary = cache_latents(folder, changed(cached=CacheConfig(windows=3, workers=2)))
        assert (summary.made, summary.digest) == (3, cached[1].digest)
        assert {name: content for name, (content, _) in sidecars(folder).items()} == {
            name: content for name, (content, _) in sidecars(cached[0]).items()
        }
        with pytest.raises(
            UserError, match="2 actors need 1 GPUs, Ray has 0; lower train.data.cached.workers"
        ):
            cache_latents(folder, changed(cached=CacheConfig(windows=3, workers=2, num_gpus=0.5)))
        unnamed = changed(codecs=CodecConfig(video="wan2.2"), cached=CacheConfig(windows=3, workers=2))
        with pytest.raises(UserError, match="codec wan2.2 needs weights") as caught:
            cache_latents(folder, unnamed)
        assert caught.value.kind == "missing-weights"
    finally:
        ray.shutdown()


@pytest.mark.parametrize("while_reading", [True, False])
def test_stage_on_cached_latents_continues_when_shards_are_rewritten(
    cached: tuple[Path, CacheSummary], codecs: Codecs, tmp_path: Path, while_reading: bool
) -> None:
    """`clip1` is gone: the tar of clips 0 to 2 is written anew, without latents until they are cached."""
    folder = copied(cached, tmp_path)
    everything, stream = SampleStream(str(folder)), SampleStream(str(folder), frames=CONFIG.frames)
    windows, _ = find_latents(stream, CONFIG, codecs)
    assert windows is not None
    tars = [["clip0", "clip2"], ["clip3", "clip4", "clip8", "clip9"]]
    write_tars(folder, [[everything.sample_by_key(key) for key in keys] for keys in tars])
    entries = json.loads((folder / "manifest.json").read_text())["shards"]
    remove_stale_latents(folder, {entry["name"]: entry["sha256"] for entry in entries})
    expected = {"clip3": "", "clip4": "", "clip8": "damaged-sample", "clip1": "gone-sample"}
    if while_reading:
        expected |= {"clip0": "gone-sample", "clip2": "gone-sample"}
    else:
        cache_latents(folder, CONFIG)
        stream = SampleStream(str(folder), shards=stream.shards, order=stream.order)
        windows, _ = find_latents(stream, CONFIG, codecs, windows.digest)
        assert windows is not None
        expected |= {"clip0": "", "clip2": ""}
    kinds = {}
    for position in range(len(stream)):
        key = stream.keys[stream.sampler.sample_at(position)]
        try:
            assert windows.take(position, random_for(0, 0, position)).key == key
            kinds[key] = ""
        except UserError as error:
            kinds[key] = error.kind
    assert kinds == expected
    assert any("have no cached latents" in line for line in stream.notices) == while_reading
    assert not stream.error_budget.damaged
