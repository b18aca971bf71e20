"""The stream: any position by index, the same order for everyone, exact resume, and damage that costs only itself."""

import json
import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import sample_named, write_tars

from uniavgen.shards import store as store_module
from uniavgen.shards.buckets import Buckets
from uniavgen.shards.config import ErrorBudgetConfig
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.sampler import BucketSampler
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.store import Store
from uniavgen.shards.tar.index import index_name


def write_shards(folder: Path, sizes: list[int], split: str = "train") -> list[str]:
    """Tars of so many samples each; returns the keys."""
    keys = [[f"{split}{shard}x{place}" for place in range(size)] for shard, size in enumerate(sizes)]
    write_tars(folder, [[sample_named(key) for key in tar] for tar in keys], split)
    return [key for tar in keys for key in tar]


def keys_read(stream: SampleStream, start: int, count: int, world: int = 1) -> list[str]:
    """What `world` readers read together of `count` positions from `start` on, in the order of the positions."""
    found: list[tuple[int, str]] = []
    for rank in range(world):
        share = len(range(start + rank, start + count, world))
        found += [(p, s.key) for p, s in islice(stream.read(start, rank=rank, world=world), share)]
    assert sorted(position for position, _ in found) == list(range(start, start + count)), "lost or repeated"
    return [key for _, key in sorted(found)]


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_every_epoch_holds_every_sample_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    keys = write_shards(folder, sizes)
    stream = SampleStream(str(folder), "train", seed)
    for epoch in (0, 1, 1000):
        read = [stream.sample_at(epoch * len(stream) + place).key for place in range(len(stream))]
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
def test_a_run_resumed_on_another_world_size_reads_the_same_samples_in_the_same_order(
    three_tars: str, stop: int, before: int, after: int, batch: int, bucketed: bool
) -> None:
    buckets = Buckets(seconds=(3.0, 5.0)) if bucketed else None
    straight = keys_read(SampleStream(three_tars, seed=5, buckets=buckets, batch=batch), 0, 45)

    stopped = SampleStream(three_tars, seed=5, buckets=buckets, batch=batch)
    first = keys_read(stopped, 0, stop, before)
    state = json.loads(json.dumps(stopped.state(stop)))
    resumed, position = SampleStream.resume(three_tars, state)
    assert first + keys_read(resumed, position, 45 - stop, after) == straight


def test_reading_ahead_in_threads_gives_the_same_in_the_same_order(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 4])
    stream = SampleStream(str(tmp_path), seed=1)
    plain = [(p, s.key) for p, s in islice(stream.read(3, rank=1, world=2), 25)]
    assert [(p, s.key) for p, s in islice(stream.read(3, rank=1, world=2, ahead=4), 25)] == plain


def test_a_run_keeps_its_order_while_the_corpus_grows_and_says_when_its_shards_are_gone(
    tmp_path: Path,
) -> None:
    tars = [[sample_named(f"{tar}{i}") for i in range(4)] for tar in "abc"]
    write_tars(tmp_path, tars[:2])
    began = SampleStream(str(tmp_path), seed=3)
    state, rest = began.state(5), keys_read(began, 5, 30)
    write_tars(tmp_path, tars)
    assert len(SampleStream(str(tmp_path), seed=3)) == 12
    grown, position = SampleStream.resume(str(tmp_path), state)
    assert keys_read(grown, position, 30) == rest
    write_tars(tmp_path, [tars[0], tars[2]])
    with pytest.raises(
        UserError, match=r"1 of the run's 2 shards are missing or changed, first train-000001.tar"
    ) as caught:
        SampleStream.resume(str(tmp_path), state)
    assert caught.value.kind == "shards-changed"


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch=st.integers(1, 6),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_batches_are_of_one_bucket_and_no_sample_is_lost_or_favoured(
    sizes: list[int], batch: int, seed: int, data: st.DataObject
) -> None:
    bucket = np.array(
        data.draw(st.permutations([name for name, size in enumerate(sizes) for _ in range(size)]))
    )
    order = BucketSampler(bucket, batch=batch, seed=seed)
    steps = 12 * len(bucket) // batch
    taken = [[order.sample_at(step * batch + lane) for lane in range(batch)] for step in range(steps)]
    rows: dict[int, list[int]] = {name: [] for name in set(bucket.tolist())}
    for step, samples in enumerate(taken):
        assert {bucket[sample] for sample in samples} == {order.bucket_at(step * batch)}
        rows[order.bucket_at(step * batch)] += samples
    for name, row in rows.items():
        size = int((bucket == name).sum())
        for first in range(0, len(row) - size + 1, size):
            assert sorted(row[first : first + size]) == np.flatnonzero(bucket == name).tolist(), (
                "a round is not a permutation"
            )
        share = len(row) - steps * batch * size / len(bucket)
        assert abs(share) <= (len(sizes) + 1) * batch + size, "a bucket is favoured"


def test_the_shuffle_is_uniform_over_the_whole_split() -> None:
    """Each of 24 samples comes first equally often, and neighbours in the tar are no nearer than chance."""
    orders = [BucketSampler(np.zeros(24, int), seed=seed) for seed in range(3000)]
    places = np.array([[order.sample_at(p) for p in range(24)] for order in orders])
    counts = np.bincount(places[:, 0], minlength=24)
    assert ((counts - 125) ** 2 / 125).sum() < 49.7  # chi squared, 23 degrees of freedom, p = 0.001
    distance = np.abs(np.diff(places[:, :2].astype(int), axis=1)).mean()
    assert distance == pytest.approx(25 / 3, abs=0.4)  # mean distance of two of 24 places drawn at random


def test_lengths_and_shapes_share_a_batch_only_with_their_like(tmp_path: Path) -> None:
    shapes = {f"s{i}": (512, 512) if i % 3 else (288, 512) for i in range(30)}
    write_tars(tmp_path, [[sample_named(key, 2.0 + i / 4) for i, key in enumerate(shapes)]], sizes_px=shapes)
    stream = SampleStream(str(tmp_path), buckets=Buckets(seconds=(4.0, 6.0), aspects=(0.8,)), batch=4)
    seconds = {key: 2.0 + i / 4 for i, key in enumerate(shapes)}
    for step in range(40):
        batch = [stream.sample_at(step * 4 + lane).key for lane in range(4)]
        assert len({shapes[key] for key in batch}) == 1
        assert len({np.searchsorted([4.0, 6.0], seconds[key]) for key in batch}) == 1


def test_bounds_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="bounds must rise"):
        Buckets(seconds=(3.0, 3.0))


def test_an_object_store_gives_what_the_disk_gives(tmp_path: Path) -> None:
    write_shards(tmp_path, [3, 4])
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/bucket/shards", recursive=True)
    try:
        remote = SampleStream("memory://bucket/shards", seed=2)
        assert keys_read(remote, 0, 20) == keys_read(SampleStream(str(tmp_path), seed=2), 0, 20)
    finally:
        store.rm("/bucket", recursive=True)


def test_another_seed_gives_another_order(tmp_path: Path) -> None:
    write_shards(tmp_path, [8, 8])
    orders = {
        tuple(SampleStream(str(tmp_path), "train", seed).sample_at(i).key for i in range(16))
        for seed in range(5)
    }
    assert len(orders) == 5


def test_a_sample_can_be_asked_for_by_name(tmp_path: Path) -> None:
    write_shards(tmp_path, [2, 2])
    assert SampleStream(str(tmp_path), "train").sample_by_key("train1x0").video == b"train1x0"
    with pytest.raises(UserError, match="no sample nobody"):
        SampleStream(str(tmp_path), "train").sample_by_key("nobody")


def test_what_is_missing_says_what_to_run(tmp_path: Path) -> None:
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
    """Harm one tar: a bit flipped in its first sample, all but its first 8000 bytes cut off, or the whole file gone."""
    tar = folder / f"train-{number:06d}.tar"
    data = bytearray(tar.read_bytes())
    if kind == "flip":
        data[700] ^= 4
    if kind == "gone":
        tar.unlink()
    else:
        tar.write_bytes(data[:8000] if kind == "cut" else data)


@pytest.mark.parametrize(("kind", "lost"), [("flip", 1), ("cut", 3), ("gone", 4)])
def test_damage_costs_only_itself_and_is_counted_named_and_logged(
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


def test_too_much_damage_stops_with_a_clear_line(tmp_path: Path) -> None:
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


def test_a_store_that_fails_for_a_while_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, [3])
    monkeypatch.setattr(store_module, "WAITS_S", (0.01, 0.01))
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/flaky/shards", recursive=True)
    real, asked = type(store).cat_file, []

    def failing(self: object, path: str, **span: int) -> bytes:
        asked.append(path)
        if len(asked) % 3:  # fails twice, then answers
            raise OSError("503 Slow Down")
        found: bytes = real(self, path, **span)
        return found

    try:
        monkeypatch.setattr(type(store), "cat_file", failing)
        stream = SampleStream("memory://flaky/shards")
        assert len({sample.key for _, sample in islice(stream.read(), 3)}) == 3
        assert not stream.error_budget.damaged
        monkeypatch.setattr(store_module, "WAITS_S", ())
        with pytest.raises(UserError, match="store cannot be read: OSError 503 Slow Down"):
            SampleStream("memory://flaky/shards")
    finally:
        store.rm("/flaky", recursive=True)


def test_a_store_that_does_not_take_a_file_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "WAITS_S", (0.01, 0.01))
    store = fsspec.filesystem("memory")
    real, asked = {name: getattr(type(store), name) for name in ("put_file", "rm_file")}, list[str]()

    def failing(name: str) -> Callable[..., Any]:
        def call(self: object, *args: Any, **kw: Any) -> Any:
            asked.append(name)
            if len(asked) % 3:
                raise OSError("503 Slow Down")
            return real[name](self, *args, **kw)

        return call

    (tmp_path / "a.tar").write_bytes(b"tar")
    copy = Store("memory://flaky/copy")
    for name, act in (
        ("put_file", lambda: copy.put(tmp_path / "a.tar", "a.tar")),
        ("rm_file", lambda: copy.remove("a.tar")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(type(store), name, failing(name))
            act()
        assert copy.read_if_exists("a.tar") == {"put_file": b"tar", "rm_file": None}[name]
    copy.remove("a.tar")
    assert asked == ["put_file"] * 3 + ["rm_file"] * 3
