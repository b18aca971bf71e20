"""The bill of a large data set: linear in the clips, equal to a naive sum, and a command on a real corpus."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from uniavgen.ingest.config import PoolConfig, PoolsConfig
from uniavgen.orchestration.cli import typer_app
from uniavgen.orchestration.planning.bill import (
    Prices,
    SourceCost,
    bill_items,
    checkpoint_gb,
    reserved_seconds,
    scale_to,
)
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.train.config import TrainConfig

amounts = st.floats(0, 1e9)
costs = st.builds(
    SourceCost,
    kept=st.integers(0, 50).map(float),
    core_s=amounts,
    gpu_s=amounts,
    video_s=amounts,
    source_bytes=amounts,
    media_bytes=amounts,
    cache_bytes=amounts,
)


@given(st.lists(costs, min_size=1, max_size=6).filter(lambda found: any(cost.kept for cost in found)))
def test_totals_are_the_sums_by_kept_clip_and_grow_with_the_clips(sources: list[SourceCost]) -> None:
    clips = 1000
    totals = scale_to(sources, clips)
    kept = sum(source.kept for source in sources)
    expected = {
        "sources": len(sources) / kept * clips,
        "core_h": sum(source.core_s for source in sources) / 3600 / kept * clips,
        "gpu_h": sum(source.gpu_s for source in sources) / 3600 / kept * clips,
        "media_gb": sum(source.media_bytes for source in sources) / 1e9 / kept * clips,
    }
    for name, value in expected.items():
        assert totals[name]["mid"] == pytest.approx(value)
        assert totals[name]["low"] <= totals[name]["high"]
    doubled = scale_to(sources, 2 * clips)
    for name, total in totals.items():
        assert doubled[name] == pytest.approx({end: 2 * value for end, value in total.items()})


def test_equal_sources_have_no_range_and_unequal_ones_have_one() -> None:
    source = SourceCost(kept=4, core_s=7200, media_bytes=2e6)
    totals = scale_to([source] * 5, 1_300_000)
    assert totals["core_h"] == pytest.approx(dict.fromkeys(("low", "mid", "high"), 2 / 4 * 1_300_000))
    spread = scale_to([source, replace(source, core_s=72000)], 1000)["core_h"]
    assert spread["low"] < spread["mid"] < spread["high"]


def test_steps_cost_what_their_workers_reserve() -> None:
    seconds = {"probe": 10.0, "transcribe": 100.0, "faces": 50.0, "cut": 20.0, "a step of long ago": 1.0}
    pools = PoolsConfig(
        prepare=PoolConfig(num_cpus=0.25), joint=PoolConfig(num_cpus=0.75), cut=PoolConfig(num_cpus=0.5)
    )
    assert reserved_seconds(seconds, pools) == pytest.approx((0.25 * 11 + 0.75 * 150 + 0.5 * 20, 0.0))
    on_card = pools.model_copy(update={"speech": PoolConfig(num_cpus=1, num_gpus=0.5)})
    cores, gpus = reserved_seconds(seconds, on_card)
    assert (cores, gpus) == pytest.approx((0.25 * 11 + 100 + pools.sight.num_cpus * 50 + 0.5 * 20, 50.0))


def test_lines_are_quantity_times_price() -> None:
    data = scale_to([SourceCost(kept=2, core_s=3600, gpu_s=360, source_bytes=3e9, media_bytes=1e9)], 100)
    training = {"stages": [{"stage": "joint", "gpu_hours": 500.0}], "data": {"latents_gb": 7.0}}
    items = {item["item"]: item for item in bill_items(data, training, 3.0, Prices(0.1, 2.0, 0.02, 3.0))}
    assert items["ingest: cores"]["cost"]["mid"] == pytest.approx(50 * 0.1)
    assert items["ingest: GPUs"]["cost"]["mid"] == pytest.approx(5 * 2.0)
    assert items["training: stage joint"]["cost"]["mid"] == pytest.approx(500 * 2.0)
    assert items["storage: raw videos"]["cost"]["mid"] == pytest.approx(150 * 0.02 * 3)
    assert items["storage: checkpoints and weights"]["cost"]["high"] == pytest.approx(3 * 0.02 * 3)


def test_checkpoints_grow_with_those_that_are_kept() -> None:
    config = TrainConfig()
    more = config.model_copy(deep=True)
    more.checkpoint.keep = config.checkpoint.keep + 1
    assert checkpoint_gb(more) > checkpoint_gb(config) > 0


def run_bill(*words: str) -> Any:
    return CliRunner().invoke(typer_app("bill"), [*words, "--json"])


def test_command_prices_a_corpus_and_its_training(
    make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]
) -> None:
    corpus = make_corpus([make_clip(source, 3.0 * i, source) for source in "abc" for i in range(2)])
    rows = corpus.read("sources").to_pylist()
    corpus.upsert(
        "sources", [row | {"bytes": 10_000_000, "step_seconds": {"transcribe": 36.0}} for row in rows]
    )
    words = ["--corpus", str(corpus.root), "--clips", "1000", "--gpus", "2", "--gpu-hour", "2"]
    done = run_bill(*words)
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["sources_measured"] == 3
    assert summary["data"]["sources"]["mid"] == pytest.approx(500)  # two kept clips each
    assert summary["data"]["core_h"]["mid"] == pytest.approx(500 * 36 * 0.75 / 3600)
    assert summary["data"]["source_gb"]["mid"] == pytest.approx(5.0)
    total = sum(item["cost"]["mid"] for item in summary["items"])
    assert summary["total"]["mid"] == pytest.approx(total)
    hours = sum(item["quantity"]["mid"] for item in summary["items"] if item["item"].startswith("training"))
    plan = CliRunner().invoke(typer_app("plan"), ["--gpus", "2", "--clips", "1000", "--json"])
    assert json.loads(plan.stdout)["gpu_hours"] == pytest.approx(hours)
    assert "few sources were measured" in done.stderr


def test_corpus_without_a_kept_clip_is_one_line(
    make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]
) -> None:
    corpus = make_corpus([make_clip("a", 0.0, "a", snr_db=-20.0)])
    done = run_bill("--corpus", str(corpus.root))
    assert done.exit_code == 1
    assert "no clip of this corpus is kept" in json.loads(done.stdout)["error"]


def test_prices_are_part_of_the_summary() -> None:
    assert asdict(Prices(1, 2, 3, 4)) == {"core_hour": 1, "gpu_hour": 2, "gb_month": 3, "months": 4}
