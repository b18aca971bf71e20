"""Window buckets in training: best window of a clip, one window shape a step, batches of equal cost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import SMALL_MODEL, Run, read_metrics, small_config, train_together
from made_samples import make_sample
from made_shards import write_tars
from pydantic import ValidationError

from uniavgen.shards import weights
from uniavgen.shards.buckets import WindowBuckets, WindowShape
from uniavgen.shards.read.sampler import BucketSampler
from uniavgen.shards.read.stream import SampleStream
from uniavgen.train.codec.registry import load_codecs
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.loader import make_loader
from uniavgen.train.data.stage_stream import data_for, micro_batches, open_stream, stage_buckets, window_flops
from uniavgen.train.model.config import InteractionConfig

SHORT, LONG, WIDE = (
    WindowShape(frames=f, height=h, width=w) for f, h, w in ((5, 32, 32), (13, 64, 64), (13, 32, 64))
)
SHAPES = (SHORT, LONG, WIDE)
DATA = DataConfig(
    frames=13,
    height=64,
    width=64,
    reference_frames=5,
    caption_tokens=12,
    buckets=list(SHAPES),
    balance="flops",
)
STAGE = StageConfig(name="joint", steps=6, batch=2)
NARROW = SMALL_MODEL.model_copy(update={"interaction": InteractionConfig(window=4)})
"""The model with an interaction that fits the shortest window."""
CONFIG = TrainConfig(model=NARROW, data=DATA, stages=[STAGE], workers=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips for each window by length and aspect, and one that is too short for all."""
    samples = [make_sample(f"short{i}", 7 + i, seed=i) for i in range(3)]
    samples += [make_sample(f"long{i}", 16 + i, seed=i) for i in range(3)]
    samples += [make_sample(f"wide{i}", 16 + i, width=128, seed=i) for i in range(3)]
    samples += [make_sample("tiny0", 3)]
    sizes = {f"wide{i}": (128, 64) for i in range(3)}
    return write_tars(tmp_path_factory.mktemp("buckets") / "shards", [samples], sizes_px=sizes)


def opened(shards: Path, config: TrainConfig = CONFIG) -> SampleStream:
    return SampleStream(str(shards), buckets=stage_buckets(config, STAGE))


def test_bucket_of_a_clip_is_the_best_fitting_window() -> None:
    buckets = WindowBuckets(shapes=SHAPES)
    clips = {
        (0.5, 64, 64): 0,
        (0.8125, 64, 64): 1,
        (9.0, 60, 64): 1,
        (9.0, 128, 64): 2,
        (0.5, 128, 64): 0,
        (0.1, 64, 64): 0,
    }
    columns = np.array(list(clips)).T
    assert buckets.of(columns[0], columns[1].astype(int), columns[2].astype(int)).tolist() == list(
        clips.values()
    )


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    many=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    batch=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_once_per_epoch_with_any_batch_sizes(
    sizes: list[int], many: list[int], batch: int, seed: int
) -> None:
    bucket = np.repeat(np.arange(len(sizes)), sizes)
    own = [batch * times for times in many]
    order = BucketSampler(bucket, sizes=own, seed=seed)
    rows: dict[int, list[int]] = {name: [] for name in range(len(sizes))}
    for step in range(40):
        name, first = order.bucket_at(step * order.batch), step * order.batch
        assert order.batch_size_at(first) == own[name]
        taken = [order.sample_at(first + lane) for lane in range(own[name])]
        assert {bucket[sample] for sample in taken} == {name}
        rows[name] += taken
        if own[name] < order.batch:
            with pytest.raises(IndexError):
                order.sample_at(first + own[name])
        other = order.replacement_position(first, 2)
        assert order.bucket_at(other) == name
        assert other > first
    for name, row in rows.items():
        count = sizes[name]
        for start in range(0, len(row) - count + 1, count):
            assert sorted(row[start : start + count]) == np.flatnonzero(bucket == name).tolist()


def test_cheap_windows_take_whole_multiples_of_the_batch() -> None:
    buckets = stage_buckets(CONFIG, STAGE)
    assert buckets is not None
    costs = np.array([window_flops(CONFIG, STAGE, shape) for shape in SHAPES])
    steps = costs * buckets.batches
    assert (np.array(buckets.batches) % STAGE.batch == 0).all()
    assert steps.max() == costs.max() * STAGE.batch
    assert (steps > steps.max() / 2).all()
    assert buckets.batches[0] > buckets.batches[1] == STAGE.batch
    even = CONFIG.model_copy(update={"data": DATA.model_copy(update={"balance": "samples"})})
    assert stage_buckets(even, STAGE) == WindowBuckets(shapes=SHAPES, batches=(2, 2, 2))
    assert stage_buckets(CONFIG.model_copy(update={"data": DataConfig()}), STAGE) is None


@pytest.mark.parametrize("world", [1, 2])
def test_workers_share_every_batch_and_have_as_many_micro_steps_at_each(shards: Path, world: int) -> None:
    stream = opened(shards)
    for step in range(12):
        own = [micro_batches(step, stream, STAGE, world, rank, 1) for rank in range(world)]
        assert {len(micros) for micros in own} == {STAGE.batch // world}
        assert sorted(place for micros in own for places in micros for place in places) == list(
            range(stream.sampler.batch_size_at(step * stream.sampler.batch))
        )
        assert len({len(places) for micros in own for places in micros}) == 1


def test_batch_has_the_window_shape_of_its_step(shards: Path) -> None:
    codecs = load_codecs(DATA.codecs, with_video=False)
    stream = opened(shards)
    loader = make_loader(stream, DATA, STAGE, codecs)
    assert loader.latents == ""
    assert loader.source == "latents are encoded during training: 3 window shapes, cached latents have one"
    lengths, passed_over = Counter[int](), 0
    for step in range(12):
        bucket = stream.sampler.bucket_at(step * loader.batch)
        size = stream.sampler.batch_size_at(step * loader.batch)
        loaded = loader.load(step, range(size))
        halves = [
            key
            for part in (range(size // 2), range(size // 2, size))
            for key in loader.load(step, part).batch.keys
        ]
        assert halves == loaded.batch.keys
        assert {key.rstrip("0123456789") for key in loaded.batch.keys} == {("short", "long", "wide")[bucket]}
        assert loaded.batch.mel.shape == (size, 100, data_for(DATA, SHAPES[bucket]).mels)
        lengths[bucket] += 1
        passed_over += loaded.counts["short"]
    assert set(lengths) == {0, 1, 2}
    assert passed_over > 0, "the clip too short for any window"


def test_bucketed_stream_resumes_from_its_state(shards: Path) -> None:
    stream = opened(shards)
    resumed, position = SampleStream.resume(
        str(shards), json.loads(json.dumps(stream.state(5 * stream.sampler.batch)))
    )
    assert (resumed.buckets, resumed.sampler.batch, position) == (
        stream.buckets,
        stream.sampler.batch,
        5 * stream.sampler.batch,
    )
    for at in range(position, position + 60):
        if at % stream.sampler.batch < stream.sampler.batch_size_at(at):
            assert resumed.shard_and_key_at(at) == stream.shard_and_key_at(at)
    read = [sample.key for _, sample in zip(range(9), (s for _, s in resumed.read(position)), strict=False)]
    whole = (
        at
        for at in range(position, position + 60)
        if at % stream.sampler.batch < stream.sampler.batch_size_at(at)
    )
    assert read == [stream.shard_and_key_at(at)[1] for at, _ in zip(whole, range(9), strict=False)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"buckets": [{"frames": 8, "height": 64, "width": 64}]}, "4n"),
        ({"buckets": [{"frames": 9, "height": 64, "width": 50}]}, "multiple of 32"),
        ({"buckets": [SHORT, SHORT]}, "listed twice"),
        ({"buckets": [SHORT], "latents": "require"}, "cached for one window shape only"),
    ],
)
def test_invalid_window_shapes_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        DataConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("window", "fits"), [(4, True), (5, False), (12, False)])
def test_shortest_window_must_exceed_the_interaction_window(window: int, fits: bool) -> None:
    model = SMALL_MODEL.model_copy(update={"interaction": InteractionConfig(window=window)})
    plan = {"model": model, "data": DATA, "stages": [STAGE]}
    if fits:
        assert TrainConfig(**plan).data == DATA
    else:
        with pytest.raises(
            ValidationError, match=rf"window is {window} frames, data\.buckets\.0\.frames has only 5"
        ):
            TrainConfig(**plan)


@pytest.mark.slow
def test_two_ranks_train_on_the_batches_of_one_rank(shards: Path, tmp_path: Path) -> None:
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    square, wide = WindowShape(frames=13, height=192, width=192), WindowShape(frames=13, height=32, width=64)
    data = DATA.model_copy(
        update={"buckets": [square, wide], "seed": 3}
    )  # the wide one comes up within four steps
    stage = STAGE.model_copy(update={"steps": 4})
    plan = small_config([stage], 2, zero_stage=1).model_copy(
        update={"data": data, "trace": True, "fixed_steps": 0}
    )
    buckets = WindowBuckets(shapes=(square, wide), batches=(2, 4))
    assert stage_buckets(plan, stage) == buckets
    train_together([Run(plan, "joint", tmp_path)], shards, 2)
    assert sorted(step for step in read_metrics(tmp_path) if step) == [1, 2, 3, 4]

    stream = open_stream(plan, stage, str(shards), str(tmp_path))
    loader = make_loader(stream, data, stage, load_codecs(data.codecs, with_video=False))
    seen: dict[int, dict[str, str]] = {}
    for rank in range(2):
        for line in (tmp_path / "joint" / f"trace-{rank}.jsonl").read_text().splitlines():
            entry = json.loads(line)
            seen.setdefault(entry["step"], {}).update(entry["keys"])
    batches = [
        loader.load(step, range(stream.sampler.batch_size_at(step * loader.batch))).batch.keys
        for step in range(4)
    ]
    assert [
        [seen[step][str(place)] for place in range(len(batch))] for step, batch in enumerate(batches)
    ] == batches
    assert {len(batch) for batch in batches} == {2, 4}
