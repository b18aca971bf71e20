"""The stream: random access, one sequence for all readers, exact resume, damaged samples."""

import json
import logging
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import sample_named, write_tars

from uniavgen.shards.buckets import Buckets
from uniavgen.shards.config import ErrorBudgetConfig
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.tar.index import index_name


def write_shards(folder: Path, sizes: list[int], split: str = "train") -> list[str]:
    """Write tars with `sizes` samples; returns the keys."""
    keys = [[f"{split}{shard}x{index}" for index in range(size)] for shard, size in enumerate(sizes)]
    write_tars(folder, [[sample_named(key) for key in tar] for tar in keys], split)
    return [key for tar in keys for key in tar]


def keys_read(stream: SampleStream, start: int, count: int, world: int = 1) -> list[str]:
    """Keys at `count` positions from `start` on, read together by `world` readers."""
    samples: list[tuple[int, str]] = []
    for rank in range(world):
        share = len(range(start + rank, start + count, world))
        samples += [(p, s.key) for p, s in islice(stream.read(start, rank=rank, world=world), share)]
    assert sorted(position for position, _ in samples) == list(range(start, start + count)), (
        "lost or repeated"
    )
    return [key for _, key in sorted(samples)]


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_epoch_has_every_sample_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    keys = write_shards(folder, sizes)
    stream = SampleStream(str(folder), "train", seed)
    for epoch in (0, 1, 1000):
        read = [stream.sample_at(epoch * len(stream) + index).key for index in range(len(stream))]
        assert sorted(read) == sorted(keys)


@pytest.fixture(scope="module")
def three_tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    tars = [
        [sample_named(f"t{tar}x{i}", seconds=2.0 + 1.3 * i) for i in range(size)]
        for tar, size in enumerate((3, 2, 4))
    ]
    return str(write_tars(tmp_path_factory.mktemp("three"), tars))


@settings(deadline=None, max_examples=25)
@given(
    stop=st.integers(0, 40),
    before=st.integers(1, 4),
    after=st.integers(1, 5),
    batch=st.integers(1, 5),
    bucketed=st.booleans(),
)
def test_resume_on_another_world_size_reads_the_same_sequence(
    three_tars: str, stop: int, before: int, after: int, batch: int, bucketed: bool
) -> None:
    buckets = Buckets(seconds=(3.0, 5.0)) if bucketed else None
    straight = keys_read(SampleStream(three_tars, seed=5, buckets=buckets, batch=batch), 0, 45)

    stopped = SampleStream(three_tars, seed=5, buckets=buckets, batch=batch)
    first = keys_read(stopped, 0, stop, before)
    state = json.loads(json.dumps(stopped.state(stop)))
    resumed, position = SampleStream.resume(three_tars, state)
    assert first + keys_read(resumed, position, 45 - stop, after) == straight


def test_read_ahead_gives_the_same_sequence(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 4])
    stream = SampleStream(str(tmp_path), seed=1)
    plain = [(p, s.key) for p, s in islice(stream.read(3, rank=1, world=2), 25)]
    assert [(p, s.key) for p, s in islice(stream.read(3, rank=1, world=2, ahead=4), 25)] == plain


def test_resume_ignores_new_shards_and_refuses_missing_ones(
    tmp_path: Path,
) -> None:
    tars = [[sample_named(f"{tar}{i}") for i in range(4)] for tar in "abc"]
    write_tars(tmp_path, tars[:2])
    before = SampleStream(str(tmp_path), seed=3)
    state, expected = before.state(5), keys_read(before, 5, 30)
    write_tars(tmp_path, tars)
    assert len(SampleStream(str(tmp_path), seed=3)) == 12
    grown, position = SampleStream.resume(str(tmp_path), state)
    assert keys_read(grown, position, 30) == expected
    write_tars(tmp_path, [tars[0], tars[2]])
    with pytest.raises(
        UserError, match=r"1 of the run's 2 shards are missing or changed, first train-000001.tar"
    ) as caught:
        SampleStream.resume(str(tmp_path), state)
    assert caught.value.kind == "shards-changed"


def test_object_store_gives_the_same_sequence_as_local_files(tmp_path: Path) -> None:
    write_shards(tmp_path, [3, 4])
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/bucket/shards", recursive=True)
    try:
        remote = SampleStream("memory://bucket/shards", seed=2)
        assert keys_read(remote, 0, 20) == keys_read(SampleStream(str(tmp_path), seed=2), 0, 20)
    finally:
        store.rm("/bucket", recursive=True)


def test_another_seed_gives_another_sequence(tmp_path: Path) -> None:
    write_shards(tmp_path, [8, 8])
    orders = {
        tuple(SampleStream(str(tmp_path), "train", seed).sample_at(i).key for i in range(16))
        for seed in range(5)
    }
    assert len(orders) == 5


def test_sample_by_key(tmp_path: Path) -> None:
    write_shards(tmp_path, [2, 2])
    assert SampleStream(str(tmp_path), "train").sample_by_key("train1x0").video == b"train1x0"
    with pytest.raises(UserError, match="no sample nobody"):
        SampleStream(str(tmp_path), "train").sample_by_key("nobody")


def test_missing_or_damaged_files_are_errors_with_hints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uniavgen shard"):
        SampleStream(str(tmp_path), "train")
    write_shards(tmp_path, [1])
    with pytest.raises(UserError, match="val split is empty"):
        SampleStream(str(tmp_path), "val")
    (tmp_path / index_name("train-000000.tar")).write_bytes(b"PK")
    with pytest.raises(UserError, match="index is damaged"):
        SampleStream(str(tmp_path), "train")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest is damaged"):
        SampleStream(str(tmp_path), "train")
    (tmp_path / "manifest.json").write_text(json.dumps({"manifest_version": 9, "shards": []}))
    with pytest.raises(UserError, match="version 9, this program reads 2"):
        SampleStream(str(tmp_path), "train")
    with pytest.raises(UserError, match="version 7"):
        SampleStream.resume(str(tmp_path), {"version": 7})


def damage(folder: Path, number: int, kind: str) -> None:
    """Damage one tar: flip a bit of its first sample, truncate it to 8000 bytes, or remove it."""
    tar = folder / f"train-{number:06d}.tar"
    data = bytearray(tar.read_bytes())
    if kind == "flip":
        data[700] ^= 4
    if kind == "gone":
        tar.unlink()
    else:
        tar.write_bytes(data[:8000] if kind == "cut" else data)


@pytest.mark.parametrize(("kind", "lost"), [("flip", 1), ("cut", 3), ("gone", 4)])
def test_damaged_samples_are_skipped_counted_and_logged_once(
    tmp_path: Path, kind: str, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    keys = write_shards(tmp_path, [4, 4, 4])
    damage(tmp_path, 1, kind)
    stream = SampleStream(str(tmp_path))
    with caplog.at_level(logging.WARNING, "uniavgen.shards.read.error_budget"):
        read = [sample.key for _, sample in islice(stream.read(), 3 * (12 - lost))]
    assert set(keys) - set(read) == set(stream.error_budget.damaged)
    assert len(stream.error_budget.damaged) == lost
    assert all(name.startswith("train1x") for name in stream.error_budget.damaged)
    assert len([record for record in caplog.records if "train-000001.tar" in record.message]) == lost, (
        "each is logged once"
    )


def test_exceeded_error_budget_is_an_error(tmp_path: Path) -> None:
    write_shards(tmp_path, [4, 4, 4])
    for number in (0, 1):
        damage(tmp_path, number, "gone")
    stream = SampleStream(str(tmp_path), error_budget=ErrorBudgetConfig(max_samples=3))
    with pytest.raises(
        UserError, match="4 of .* samples read are damaged, the last: the shard is missing"
    ) as caught:
        list(islice(stream.read(), 100))
    assert caught.value.kind == "too-many-damaged"
    tolerant = SampleStream(str(tmp_path), error_budget=ErrorBudgetConfig(max_samples=0, max_share=1.0))
    assert {sample.key[:6] for _, sample in islice(tolerant.read(), 20)} == {"train2"}


def test_batches_share_length_and_aspect_buckets(tmp_path: Path) -> None:
    shapes = {f"s{i}": (512, 512) if i % 3 else (288, 512) for i in range(30)}
    write_tars(tmp_path, [[sample_named(key, 2.0 + i / 4) for i, key in enumerate(shapes)]], sizes_px=shapes)
    stream = SampleStream(str(tmp_path), buckets=Buckets(seconds=(4.0, 6.0), aspects=(0.8,)), batch=4)
    seconds = {key: 2.0 + i / 4 for i, key in enumerate(shapes)}
    for step in range(40):
        batch = [stream.sample_at(step * 4 + lane).key for lane in range(4)]
        assert len({shapes[key] for key in batch}) == 1
        assert len({np.searchsorted([4.0, 6.0], seconds[key]) for key in batch}) == 1
