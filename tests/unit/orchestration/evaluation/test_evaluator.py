"""Measuring videos with real meters: resumed by video and meter, scores, slices, table and page."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from uniavgen.ingest.config import IngestConfig
from uniavgen.orchestration.evaluation import controls
from uniavgen.orchestration.evaluation.catalog import (
    METRICS,
    NOT_MEASURED,
    TABLES,
    comparable_columns,
    comparison_note,
)
from uniavgen.orchestration.evaluation.config import EvaluateConfig
from uniavgen.orchestration.evaluation.evaluator import Evaluator, build_meters
from uniavgen.orchestration.evaluation.meters import MotionMeter, SpeechQualityMeter
from uniavgen.orchestration.evaluation.page import write_page
from uniavgen.orchestration.evaluation.results import GENERATED, ResultStore, write_table
from uniavgen.orchestration.evaluation.summary import metric_scores, slice_names, slices
from uniavgen.orchestration.evaluation.videos import Item, list_videos
from uniavgen.orchestration.output.video_file import write_video
from uniavgen.shards.errors import UserError

SECONDS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of a moving texture with a voice-like tone, each another; and their list."""
    import cv2

    root = tmp_path_factory.mktemp("videos")
    for number in range(4):
        rng = np.random.default_rng(number)
        texture = cv2.GaussianBlur(rng.integers(0, 255, (96, 400, 3)).astype(np.uint8), (0, 0), 2)
        frames = np.stack([texture[:, 5 * at : 5 * at + 96] for at in range(16 * SECONDS)])
        t = np.arange(24_000 * SECONDS) / 24_000
        envelope = np.clip(np.sin(2 * np.pi * (2 + number / 3) * t), 0, 1)
        wave = 0.3 * envelope * np.sign(np.sin(2 * np.pi * (110 + 20 * number) * t))
        write_video(root / f"v{number}.mp4", frames, (96, 96), wave.astype(np.float32))
    lines = [f"v{number}.mp4,{'ab'[number % 2]},{number}" for number in range(4)]
    (root / "videos.csv").write_text("video,speaker,age\n" + "\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def ingest() -> IngestConfig:
    return IngestConfig()


def evaluator(out: Path, ingest: IngestConfig, config: EvaluateConfig | None = None) -> Evaluator:
    return Evaluator(
        [MotionMeter(), SpeechQualityMeter(ingest)], ingest, config or EvaluateConfig(), ResultStore(out)
    )


@pytest.fixture(scope="module")
def measured(folder: Path, ingest: IngestConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    evaluator(out, ingest).measure_generated(list_videos(folder))
    evaluator(out, ingest).measure_controls(list_videos(folder))
    return out


def test_second_run_measures_nothing_and_gives_the_same(
    folder: Path, ingest: IngestConfig, measured: Path
) -> None:
    before = (measured / "results.jsonl").read_bytes()
    again = evaluator(measured, ingest)
    results = again.measure_generated(list_videos(folder)) + again.measure_controls(list_videos(folder))
    assert (measured / "results.jsonl").read_bytes() == before
    assert len(results) == len(before.splitlines()) == 4 * 2 * (1 + 3)


def test_only_what_lacks_is_measured_after_a_kill(
    folder: Path, ingest: IngestConfig, measured: Path, tmp_path: Path
) -> None:
    lines = (measured / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])  # half a line
    evaluator(tmp_path, ingest).measure_generated(list_videos(folder))
    rows = [line for line in (tmp_path / "results.jsonl").read_bytes().splitlines() if line.endswith(b"}")]
    assert [json.loads(line) for line in rows] == [json.loads(line) for line in lines[:8]]


def test_another_version_of_a_meter_is_measured_again(
    folder: Path, ingest: IngestConfig, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.jsonl").write_bytes((measured / "results.jsonl").read_bytes())
    count = len(ResultStore(tmp_path))
    monkeypatch.setattr(MotionMeter, "version", "next")
    evaluator(tmp_path, ingest).measure_generated(list_videos(folder))
    assert len(ResultStore(tmp_path)) == count + 4


def test_broken_video_is_counted_and_the_others_are_measured(
    folder: Path, ingest: IngestConfig, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    items = [Item("broken", str(tmp_path / "broken.mp4")), list_videos(folder)[0]]
    results = evaluator(tmp_path, ingest).measure_generated(items)
    assert [bool(result.error) for result in results] == [True, True, False, False]
    assert all("\n" not in result.error for result in results)
    mended = replace(items[0], video=items[1].video)
    assert not any(r.error for r in evaluator(tmp_path, ingest).measure_generated([mended]))


def test_long_video_is_refused_in_one_line(folder: Path, ingest: IngestConfig, tmp_path: Path) -> None:
    short = EvaluateConfig(max_seconds=1)
    (result, _) = evaluator(tmp_path, ingest, short).measure_generated(list_videos(folder)[:1])
    assert "evaluate.max_seconds" in result.error


def test_motion_orders_its_controls_and_noise_orders_dnsmos_statistics(
    folder: Path, ingest: IngestConfig, measured: Path
) -> None:
    again = evaluator(measured, ingest)
    items = list_videos(folder)
    results = again.measure_generated(items) + again.measure_controls(items)
    scores = {score.metric: score for score in metric_scores(results)}
    assert scores["motion-dis"].reported
    means = scores["FD-mel"].order.means
    assert means["real"] < means["disturbed"] < means["swapped"]
    # the evaluated videos are the real ones here: the distance to themselves is 0
    assert scores["FD-mel"].score.value == pytest.approx(0, abs=1e-6)


def test_table_page_and_slices(folder: Path, ingest: IngestConfig, measured: Path, tmp_path: Path) -> None:
    items = list_videos(folder)
    again = evaluator(measured, ingest)
    results = again.measure_generated(items) + again.measure_controls(items)
    write_table(tmp_path / "results.parquet", results)
    table = pq.read_table(tmp_path / "results.parquet").to_pandas()
    own = table[(table.level == GENERATED) & (table.metric == "motion-dis")]
    scores = {score.metric: score.as_dict() for score in metric_scores(results)}
    assert own.value.mean() == pytest.approx(scores["motion-dis"]["score"]["value"])
    rows = slices(results, items, ["speaker", "age", "absent"], ["motion-dis"], bands=2)
    by_hand = own.set_index("video").value
    assert {(row["condition"], row["slice"]): row["score"]["value"] for row in rows} == pytest.approx(
        {
            ("speaker", "a"): by_hand[["v0", "v2"]].mean(),
            ("speaker", "b"): by_hand[["v1", "v3"]].mean(),
            ("age", "below 1.5"): by_hand[["v0", "v1"]].mean(),
            ("age", "from 1.5"): by_hand[["v2", "v3"]].mean(),
        }
    )
    summary = {
        "protocol": "paper", "videos": 4, "real_clips": 4, "scores": list(scores.values()), "slices": rows,
        "comparison": "x", "not_measured": NOT_MEASURED, "errors": [],
    }  # fmt: skip
    name = '<script>alert("x")</script>'
    videos = [
        {"name": name, "video": str(folder / "v0.mp4"), "scores": {"motion-dis": 3.0}, "transcript": ""}
    ]
    page = write_page(tmp_path / "index.html", summary, videos).read_text()
    assert name not in page
    assert "v0.mp4" in page


def test_bands_have_equal_counts_and_mixed_values_stay_as_they_are() -> None:
    items = [
        Item(str(n), "", conditions={"yaw": float(n), "mixed": float(n) if n else "none"}) for n in range(9)
    ]
    groups = list(slice_names(items, "yaw", 3).values())
    assert sorted(groups.count(name) for name in set(groups)) == [3, 3, 3]
    assert slice_names(items, "mixed", 3)["0"] == "none"


def test_partner_is_of_another_person_where_there_is_one() -> None:
    assert controls.partners(["a", "a", "b"]) == [2, 2, 0]
    assert controls.partners(["a", "a"]) == [1, 0]
    with pytest.raises(ValueError, match="two clips"):
        controls.partners(["a"])


@pytest.mark.parametrize("setting", ["syncnet", "dino", "raft", "audiobox"])
def test_absent_weights_are_refused_before_the_work(ingest: IngestConfig, setting: str) -> None:
    config = EvaluateConfig.model_validate({"weights": {setting: "/absent/weights"}})
    with pytest.raises(UserError, match="no weights here") as caught:
        build_meters(ingest, config)
    assert f"evaluate.weights.{setting}" in caught.value.hint


def test_every_metric_of_a_meter_is_in_the_catalogue(ingest: IngestConfig) -> None:
    meters, lacking = build_meters(ingest, EvaluateConfig())
    assert {name for meter in meters for name in meter.metrics} <= set(METRICS)
    assert not {name for meter in meters for name in meter.metrics} & set(lacking)


def test_stand_ins_never_have_a_published_column() -> None:
    published = {column for table in TABLES.values() for row in table.rows.values() for column in row}
    stand_ins = [
        name for name, spec in METRICS.items() if not spec.needs or spec.needs in ("text", "voice", "image")
    ]
    assert not published & set(stand_ins)
    assert comparable_columns(stand_ins) == {}
    assert "Nothing here may be compared" in comparison_note("paper", stand_ins)
    assert comparable_columns(["LSE-C", "PQ"]) == {"LS": "LSE-C", "PQ": "PQ"}
