"""The stream: any position by index, the same order for everyone, and damage that is named."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from shards.sample import FaceTrack, Sample, SampleMeta, to_members
from shards.stream import SampleStream


def sample_named(key: str) -> Sample:
    meta = SampleMeta(
        clip_id=key, source_id="s", source_uri="s.mp4", start_s=0, end_s=2, speaker="a", language="en", transcript="", words=[],
        caption="", caption_model="", signals={}, versions={},
    )  # fmt: skip
    face = FaceTrack(np.zeros((1, 36, 2), np.float32), np.zeros((1, 4), np.float32), np.zeros(1, np.float32))
    return Sample(meta, key.encode(), b"sound", face)


def write_shards(folder: Path, sizes: list[int], split: str = "train") -> list[str]:
    """Tars made by plain tarfile, with the index and manifest that the contract names; returns the keys."""
    keys, entries = [], []
    for shard, size in enumerate(sizes):
        name, samples = f"{split}-{shard:06d}.tar", []
        with tarfile.open(folder / name, "w") as tar:
            for place in range(size):
                key, start = f"{split}{shard}x{place}", tar.offset
                for extension, data in to_members(sample_named(key)).items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                samples.append({"key": key, "offset": start, "length": tar.offset - start, "seconds": 2.0})
                keys.append(key)
        (folder / f"{name}.index.json").write_text(json.dumps({"version": 1, "samples": samples}))
        entries.append({"name": name, "split": split})
    (folder / "manifest.json").write_text(json.dumps({"shards": entries}))
    return keys


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_every_epoch_holds_every_sample_once(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    keys = write_shards(folder, sizes)
    stream = SampleStream(str(folder), "train", seed)
    for epoch in (0, 1, 1000):
        read = [stream.sample_at(epoch * len(stream) + place).key for place in range(len(stream))]
        assert sorted(read) == sorted(keys)


def test_a_position_needs_nothing_that_came_before(tmp_path: Path) -> None:
    write_shards(tmp_path, [4, 3])
    straight = SampleStream(str(tmp_path), "train", 5)
    order = [straight.sample_at(position).key for position in range(30)]
    resumed = SampleStream(str(tmp_path), "train", 5)
    assert [resumed.sample_at(position).key for position in range(17, 30)] == order[17:]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_read_what_one_rank_reads(tmp_path: Path, world: int) -> None:
    write_shards(tmp_path, [4, 3])
    batch, steps = 6, 4
    streams = [SampleStream(str(tmp_path), "train", 2) for _ in range(world)]
    share = batch // world
    for step in range(steps):
        wanted = [streams[0].sample_at(step * batch + place).key for place in range(batch)]
        read = [streams[r].sample_at(step * batch + r * share + i).key for r in range(world) for i in range(share)]
        assert read == wanted


def test_another_seed_gives_another_order(tmp_path: Path) -> None:
    write_shards(tmp_path, [8, 8])
    orders = {tuple(SampleStream(str(tmp_path), "train", seed).sample_at(i).key for i in range(16)) for seed in range(5)}
    assert len(orders) == 5


def test_a_sample_can_be_asked_for_by_name(tmp_path: Path) -> None:
    write_shards(tmp_path, [2, 2])
    assert SampleStream(str(tmp_path), "train").sample_named("train1x0").video == b"train1x0"
    with pytest.raises(UserError, match="no sample nobody"):
        SampleStream(str(tmp_path), "train").sample_named("nobody")


def test_what_is_missing_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uniavgen shard"):
        SampleStream(str(tmp_path), "train")
    write_shards(tmp_path, [1])
    with pytest.raises(UserError, match="val split is empty"):
        SampleStream(str(tmp_path), "val")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        SampleStream(str(tmp_path), "train")


def test_a_damaged_tar_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, [1])
    tar = tmp_path / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[0:100] = b"\xff" * 100
    tar.write_bytes(bytes(data))
    with pytest.raises(UserError, match="train-000000.tar"):
        SampleStream(str(tmp_path), "train").sample_at(0)
