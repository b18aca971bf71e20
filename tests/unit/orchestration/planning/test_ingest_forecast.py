"""Forecast from a corpus's tables, and its comparison with the result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uniavgen.ingest.engine.progress import IngestSummary
from uniavgen.ingest.io.uris import Entry
from uniavgen.ingest.measures.registry import step_graph
from uniavgen.orchestration.config import Config
from uniavgen.orchestration.planning.ingest_forecast import (
    make_forecast,
    sampled_sources,
    show_actual,
    waiting_sources,
)
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

Make = Callable[..., Any]
MEGABYTE = 10**6
HISTORY = [(10.0, 0.0), (30.0, 30.0)]
"""Ten seconds of loading, then 1.5 workers busy."""


def add(corpus: Corpus, make_clip: Make, clip_media: dict[str, bytes], source: str) -> None:
    """Add a measured source of 20 s with two clips of 2 s: the default policy keeps one and rejects one."""
    clips = [make_clip(source, 1.0, "a"), make_clip(source, 5.0, "a", snr_db=-20.0)]
    corpus.upsert("clips", clips)
    row = {
        "source_id": source,
        "uri": f"/v/{source}.mp4",
        "duration_s": 20.0,
        "step_seconds": {"faces": 12.0, "cut": 3.0},
    }
    corpus.upsert("sources", [row | {"digest": step_graph(Config().ingest).digest}])
    for clip in clips:
        for extension, data in clip_media.items():
            path = corpus.media_path(clip["clip_id"], extension)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    stored = corpus.root / "measured" / source[:2] / source
    stored.mkdir(parents=True)
    (stored / "faces.0.npz").write_bytes(bytes(1000))


def entries(*names: str) -> list[Entry]:
    return [Entry(f"/v/{name}.mp4", "", MEGABYTE) for name in names]


@pytest.fixture
def corpus(tmp_path: Path, make_clip: Make, clip_media: dict[str, bytes]) -> Corpus:
    """Two measured sources, one that failed."""
    made = Corpus.create(tmp_path / "corpus")
    for source in ("one", "two"):
        add(made, make_clip, clip_media, source)
    made.upsert(
        "failures",
        [
            {
                "uri": "/v/bad.mp4",
                "stage": "probe",
                "error_type": "no-video",
                "digest": step_graph(Config().ingest).digest,
            }
        ],
    )
    return made


def test_sampled_sources_are_read_from_tables_and_files(corpus: Corpus, clip_media: dict[str, bytes]) -> None:
    one, bad = sampled_sources(corpus, entries("one", "bad"), "default")
    assert (one.bytes, one.video_s, one.clips, one.clip_s, one.kept_s) == (MEGABYTE, 20.0, 2, 4.0, 2.0)
    assert one.media_bytes == 2 * sum(map(len, clip_media.values()))
    assert (one.stored_bytes, one.step_seconds) == (1000, {"faces": 12.0, "cut": 3.0})
    assert (bad.failed, bad.clips) == (True, 0)


def test_forecast_is_exact_if_the_other_sources_are_alike(
    corpus: Corpus, make_clip: Make, clip_media: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    forecast = make_forecast(
        corpus, Config(), entries("one", "two"), entries("three", "four", "five"), HISTORY
    )
    assert json.loads((corpus.root / "forecast.json").read_text()) == forecast
    assert (forecast["sources"], forecast["sampled"], forecast["slowest_step"]) == (3, 2, "faces")
    assert forecast["figures"]["wall_h"]["mid"] == pytest.approx((10 + 45 / 1.5) / 3600), (
        "three sources of 15 s, 1.5 workers busy"
    )
    assert show_actual(corpus, IngestSummary()) is None, "no ingest since the forecast"
    for source in ("three", "four", "five"):
        add(corpus, make_clip, clip_media, source)
    actual = show_actual(corpus, IngestSummary(sources=3, seconds=42.0))
    assert actual is not None
    assert actual["done"] == 3
    for name in ("video_h", "clips", "clip_h", "kept_h", "kept_share", "media_gb", "stored_gb", "failures"):
        assert actual["actual"][name] == pytest.approx(forecast["figures"][name]["mid"]), name
    assert actual["actual"]["wall_h"] == pytest.approx(42 / 3600)
    assert "3 of 3 predicted sources" in capsys.readouterr().err


def test_only_sources_that_were_not_tried_are_predicted(corpus: Corpus, tmp_path: Path) -> None:
    videos = tmp_path / "v"
    videos.mkdir()
    (videos / "new.mp4").write_bytes(b"0123456789")
    (videos / "done.mp4").write_bytes(b"0")
    corpus.upsert(
        "sources",
        [{"source_id": "d", "uri": str(videos / "done.mp4"), "digest": step_graph(Config().ingest).digest}],
    )
    corpus.upsert("sources", [{"source_id": "n", "uri": str(videos / "new.mp4"), "digest": "other settings"}])
    waiting = waiting_sources([str(videos)], corpus, Config())
    assert {uri: entry.bytes for uri, entry in waiting.items()} == {str(videos / "new.mp4"): 10}


def test_no_forecast_from_failures_only(corpus: Corpus) -> None:
    with pytest.raises(UserError, match="none of the sources tried"):
        make_forecast(corpus, Config(), entries("bad"), entries("one"), HISTORY)
