"""Fitting a codec to shards: kept beside them, copied into runs, refused where it does not belong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_samples import make_sample, write_shards

from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import CODECS_FOLDER, delete_latents
from uniavgen.shards.read.stream import SampleStream
from uniavgen.train.codec.fitted import FittedCodec
from uniavgen.train.codec.registry import CodecConfig
from uniavgen.train.data.cached_latents import FIELD_DEFAULTS, cache_fields, differing_fields, find_latents
from uniavgen.train.data.codec_fitting import (
    RUN_CODEC,
    clip_blocks,
    codec_path,
    copy_codec,
    ensure_codec,
    fit_to_shards,
    keep_in_run,
    load_data_codecs,
)
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import crop_sample, random_for
from uniavgen.train.data.latent_caching import cut_fixed_windows, make_latents
from uniavgen.train.data.loader import CropEncoder

DATA = DataConfig(
    frames=9,
    height=64,
    width=64,
    crop="tracked",
    relative=True,
    mouth_mask=True,
    codecs=CodecConfig(video="fitted"),
)


@pytest.fixture(scope="module")
def fitted_shards(shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shards with a codec for `DATA` beside them."""
    folder = tmp_path_factory.mktemp("fitted") / "shards"
    shutil.copytree(shards_dir, folder)
    lines: list[str] = []
    assert ensure_codec(folder, DATA, lines.append) == codec_path(folder, DATA)
    assert len(lines) == 1
    return folder


def test_codec_is_fitted_once_and_stays(fitted_shards: Path) -> None:
    lines: list[str] = []
    path = ensure_codec(fitted_shards, DATA, lines.append)
    assert path is not None
    assert path.parent.name == CODECS_FOLDER
    assert lines == []
    assert fit_to_shards(fitted_shards, DATA).content == path.read_bytes()
    fit = FittedCodec.load(path).fit
    manifest = SampleStream(str(fitted_shards), "train").shards
    assert fit.shards == tuple(sorted(manifest.values()))
    assert (fit.height, fit.width, fit.crop, fit.clips) == (64, 64, "tracked", 8)


def test_other_codecs_need_no_fit(shards_dir: Path) -> None:
    assert ensure_codec(shards_dir, DataConfig()) is None
    assert not (shards_dir / CODECS_FOLDER).exists()


def test_blocks_are_frames_of_the_clip_and_mirrored_copies() -> None:
    sample = make_sample("clip", 30)
    data = DATA.model_copy(update={"crop": "centre"})
    blocks = clip_blocks(sample, data, 10)
    assert blocks.shape == (10, 4, 64, 64, 3)
    frames = sample.frames()
    np.testing.assert_array_equal(blocks[0], frames[:4])
    np.testing.assert_array_equal(blocks[4], frames[26:])
    inside = slice(4, 60)
    windows = [
        np.roll(frames[26:, :, ::-1], (dy, dx), (1, 2))[:, inside, inside]
        for dy in range(-2, 3)
        for dx in range(-2, 3)
    ]
    assert any(np.array_equal(blocks[9][:, inside, inside], window) for window in windows)
    assert len(clip_blocks(make_sample("short", 4), data, 10)) == 0


def test_too_few_clips_are_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [make_sample("a", 12)])
    with pytest.raises(UserError, match="usable frames") as caught:
        ensure_codec(folder, DATA)
    assert caught.value.kind == "too-few-frames"
    assert not codec_path(folder, DATA).exists()


def test_remote_shards_and_several_windows_are_refused_before_work() -> None:
    with pytest.raises(UserError) as caught:
        ensure_codec("s3://bucket/shards", DATA)
    assert caught.value.kind == "missing-weights"
    several = DataConfig(**{**DATA.model_dump(), "buckets": [{"frames": 9, "height": 64, "width": 64}]})
    with pytest.raises(UserError) as caught:
        ensure_codec("anywhere", several)
    assert caught.value.kind == "several-windows"


def test_codec_of_other_windows_is_refused(fitted_shards: Path) -> None:
    path = codec_path(fitted_shards, DATA)
    named = {"codecs": CodecConfig(video="fitted", video_weights=str(path))}
    for changes in ({"crop": "centre"}, {"height": 96, "width": 96}):
        with pytest.raises(UserError) as caught:
            ensure_codec(fitted_shards, DATA.model_copy(update=changes | named))
        assert caught.value.kind == "other-codec"
    with pytest.raises(UserError) as caught:
        load_data_codecs(DATA.model_copy(update={"crop": "centre"}), path)
    assert caught.value.kind == "other-codec"


def test_run_keeps_its_codec_and_refuses_another(fitted_shards: Path, tmp_path: Path) -> None:
    path = codec_path(fitted_shards, DATA)
    keep_in_run(path, tmp_path / "run")
    keep_in_run(path, tmp_path / "run")
    kept = tmp_path / "run" / RUN_CODEC
    assert kept.read_bytes() == path.read_bytes()
    keep_in_run(kept, tmp_path / "run")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"another")
    with pytest.raises(UserError) as caught:
        keep_in_run(other, tmp_path / "run")
    assert caught.value.kind == "other-codec"
    (tmp_path / "export").mkdir()
    assert copy_codec(tmp_path / "run", tmp_path / "export") is not None
    assert copy_codec(tmp_path / "elsewhere", tmp_path / "export") is None


def test_cached_latents_equal_encoded_ones_and_hold_the_mouth(fitted_shards: Path) -> None:
    stream = SampleStream(str(fitted_shards))
    sample = stream.sample_by_key(stream.keys[0])
    codecs = load_data_codecs(DATA, codec_path(fitted_shards, DATA))
    encoder = CropEncoder(DATA, codecs)
    latents = make_latents(cut_fixed_windows(sample, DATA), encoder)
    assert latents.mouth is not None
    assert latents.mouth.shape == (len(latents.start), 3, 4, 4)
    assert latents.mouth.max() > 0
    again = type(latents).from_bytes(latents.to_bytes(), sample.key)
    np.testing.assert_array_equal(again.mouth, latents.mouth)
    batch = encoder.encode(cut_fixed_windows(sample, DATA)[:1])
    assert batch.video is not None
    np.testing.assert_allclose(batch.video[0].numpy(), latents.video[0], atol=2e-2)


def test_relative_batch_is_the_difference_to_the_still_reference(fitted_shards: Path) -> None:
    stream = SampleStream(str(fitted_shards))
    crop = crop_sample(stream.sample_by_key(stream.keys[0]), DATA, random_for(0, 0, 0))
    codecs = load_data_codecs(DATA, codec_path(fitted_shards, DATA))
    assert codecs.video is not None
    relative = CropEncoder(DATA, codecs).encode([crop])
    absolute = CropEncoder(DATA.model_copy(update={"relative": False}), codecs).encode([crop])
    still = np.repeat(crop.reference_frame, 9, axis=0)
    expected = absolute.video - codecs.video.encode(torch.from_numpy(still)[None])
    torch.testing.assert_close(relative.video, expected, atol=5e-3, rtol=0)
    torch.testing.assert_close(relative.reference, absolute.reference)


def test_caches_of_other_crops_do_not_fit(fitted_shards: Path) -> None:
    codecs = load_data_codecs(DATA, codec_path(fitted_shards, DATA))
    plain = DATA.model_copy(update={"crop": "centre", "relative": False, "mouth_mask": False})
    fields = {name: cache_fields(data, codecs) for name, data in (("ours", DATA), ("plain", plain))}
    assert not {"crop", "relative", "mouth_mask"} & fields["plain"].keys(), (
        "caches made before have these fields"
    )
    assert [text.split()[0] for text in differing_fields(fields["plain"], fields["ours"])] == [
        "crop",
        "relative",
        "mouth_mask",
    ]
    assert [
        text.split()[0] for text in differing_fields(fields["ours"], FIELD_DEFAULTS | fields["plain"])
    ] == [
        "crop",
        "relative",
        "mouth_mask",
    ]
    assert differing_fields(fields["ours"], fields["ours"]) == []
    stream = SampleStream(str(fitted_shards))
    assert find_latents(stream, DATA, codecs)[0] is None


def test_deleting_clips_deletes_codecs_that_may_know_them(tmp_path: Path) -> None:
    codec = tmp_path / CODECS_FOLDER / "fitted-64x64-tracked.safetensors"
    codec.parent.mkdir()
    codec.write_bytes(b"components")
    assert delete_latents(tmp_path, []) == 0
    assert codec.is_file()
    assert delete_latents(tmp_path, ["clip0"]) == 1
    assert not codec.exists()
