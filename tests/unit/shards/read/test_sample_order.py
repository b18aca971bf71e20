"""A stage keeps its samples when shards are written anew; samples shorter than the window are not dealt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import sample_named, write_tars

from uniavgen.shards.errors import UserError
from uniavgen.shards.read.sample_order import SampleOrder
from uniavgen.shards.read.sampler import BucketSampler
from uniavgen.shards.read.stream import SampleStream

KEYS = [f"clip{number}" for number in range(9)]


def write_anew(folder: Path, tars: Sequence[Sequence[str]], seconds: float = 2.0) -> str:
    """Write tars with these keys and remove all others, as `uniavgen shard` does."""
    for path in folder.glob("train-*"):
        path.unlink()
    return str(write_tars(folder, [[sample_named(key, seconds) for key in keys] for keys in tars if keys]))


@st.composite
def rewritten(draw: st.DrawFn) -> list[list[str]]:
    """Other tars: some of the samples are gone, others are new, in any order."""
    kept = draw(st.lists(st.sampled_from(KEYS), unique=True, min_size=1))
    new = [f"new{number}" for number in range(draw(st.integers(0, 3)))]
    mixed = draw(st.permutations([*kept, *new]))
    cut = draw(st.integers(0, len(mixed)))
    return [mixed[:cut], mixed[cut:]]


@settings(deadline=None, max_examples=30)
@given(tars=rewritten(), while_reading=st.booleans())
def test_rewritten_shards_keep_order_without_gone_samples(
    tmp_path_factory: pytest.TempPathFactory, tars: list[list[str]], while_reading: bool
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    root = write_anew(folder, [KEYS[:4], KEYS[4:]])
    stream = SampleStream(root, seed=7)
    expected = [stream.sample_at(position).key for position in range(3 * len(KEYS))]
    order, shards = stream.order, stream.shards
    path = folder / "order.npz"
    order.save(path)
    write_anew(folder, tars)
    if not while_reading:
        stream = SampleStream(root, seed=7, shards=shards, order=SampleOrder.load(path))
    left = {key for tar in tars for key in tar}
    for position, key in enumerate(expected):
        if key in left:
            assert stream.sample_at(position).key == key
            continue
        with pytest.raises(UserError, match=f"sample {key} is in no shard any more") as caught:
            stream.sample_at(position)
        assert caught.value.kind == "gone-sample"
    assert not stream.error_budget.damaged
    gone = len(set(KEYS) - left)
    assert stream.gone == gone
    assert len(stream.notices) == (1 if gone else 0)


def test_all_samples_gone_is_one_line(tmp_path: Path) -> None:
    root = write_anew(tmp_path, [KEYS])
    stream = SampleStream(root)
    write_anew(tmp_path, [["other"]])
    with pytest.raises(UserError, match="none of the 9 samples with which the stage began") as caught:
        SampleStream(root, shards=stream.shards, order=stream.order)
    assert caught.value.kind == "shards-changed"
    with pytest.raises(UserError, match="none of the 9 samples"):
        stream.sample_at(0)


def test_damaged_tar_with_current_manifest_stays_damage(tmp_path: Path) -> None:
    root = write_anew(tmp_path, [KEYS])
    stream = SampleStream(root)
    (tmp_path / "train-000000.tar").unlink()
    with pytest.raises(UserError) as caught:
        stream.sample_at(0)
    assert caught.value.kind == "damaged-sample"


def test_new_samples_are_not_dealt_to_a_stage_that_began(tmp_path: Path) -> None:
    root = write_anew(tmp_path, [KEYS])
    before = SampleStream(root, seed=1)
    write_anew(tmp_path, [KEYS, ["new"]])
    after = SampleStream(root, seed=1, shards=before.shards, order=before.order)
    assert [after.sample_at(p).key for p in range(20)] == [before.sample_at(p).key for p in range(20)]
    assert after.keys == KEYS


def test_damaged_order_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "order.npz"
    path.write_bytes(b"PK broken")
    with pytest.raises(UserError) as caught:
        SampleOrder.load(path)
    assert caught.value.kind == "damaged-order"
    assert str(path) in str(caught.value)


@settings(deadline=None, max_examples=40)
@given(seconds=st.lists(st.integers(4, 64).map(lambda frames: frames / 16), min_size=1, max_size=12))
def test_only_samples_as_long_as_the_window_are_dealt(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[float]
) -> None:
    samples = [sample_named(f"c{number}", length) for number, length in enumerate(seconds)]
    root = str(write_tars(tmp_path_factory.mktemp("shards"), [samples]))
    fitting = {f"c{number}" for number, length in enumerate(seconds) if length * 16 >= 33}
    if not fitting:
        with pytest.raises(UserError) as caught:
            SampleStream(root, frames=33)
        assert caught.value.kind == "too-short"
        return
    stream = SampleStream(root, frames=33)
    assert {stream.sample_at(position).key for position in range(len(stream))} == fitting
    assert f"{len(fitting)} " in stream.line
    assert ("are left out" in stream.line) == (len(fitting) < len(samples))


@settings(deadline=None, max_examples=60)
@given(
    bucket=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    before=st.integers(0, 20),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_changed_batch_continues_with_samples_not_dealt_yet(
    bucket: list[int], before: int, sizes: tuple[int, int]
) -> None:
    """Whatever the batches are, each bucket deals its own endless sequence without a gap or a repeat."""
    numbers = np.array(bucket)

    def dealt(sampler: BucketSampler, size: int, steps: int) -> dict[int, list[int]]:
        samples: dict[int, list[int]] = {}
        for step in range(steps):
            drawn = [sampler.sample_at(step * size + lane) for lane in range(size)]
            samples.setdefault(sampler.bucket_at(step * size), []).extend(drawn)
        return samples

    first = BucketSampler(numbers, batch=sizes[0], seed=4)
    start = dealt(first, sizes[0], before)
    consumed = first.consumed_at(before * sizes[0])
    assert consumed == {name: len(start.get(name, [])) for name in sorted(set(bucket))}
    then = dealt(BucketSampler(numbers, batch=sizes[1], seed=4, consumed=consumed), sizes[1], 30)
    for name in set(bucket):
        joined = start.get(name, []) + then.get(name, [])
        of_bucket = np.flatnonzero(numbers == name).tolist()
        rounds = [joined[i : i + len(of_bucket)] for i in range(0, len(joined), len(of_bucket))]
        assert all(sorted(one) == of_bucket for one in rounds if len(one) == len(of_bucket))
        assert all(len(set(one)) == len(one) for one in rounds)
