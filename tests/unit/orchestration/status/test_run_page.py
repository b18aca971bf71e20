"""The page of a training run: what it shows, hostile names, repeated steps, long runs."""

import html
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from uniavgen.orchestration.cli import typer_app
from uniavgen.orchestration.config import Config
from uniavgen.orchestration.status.run_page import MAX_POINTS, thinned, write_run_page
from uniavgen.shards.errors import UserError
from uniavgen.shards.jsonl import append_row
from uniavgen.train.checkpoint.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two stages of a few steps, events with markup, and a validation video with a hostile name."""
    run_dir, config = tmp_path / "my [run]", Config().train
    for name in ("audio", "joint"):
        folder = RunFolder(run_dir, name)
        folder.write(config=config.model_dump(mode="json"), done=False)
        for step in (1, 2, 3, 2, 3, 4):  # training went back to step 1
            row = {"step": step, "time": 100.0 + step, "loss/total": 5.0 / step, "grad_norm": 1.0, "lr": 1e-3}
            row |= {"smoothed/loss/audio": 5.0 / step, "smoothed/task/joint/audio": 4.0}
            row |= {"time/samples_per_s": 2.0, "time/step_s": 3.0, "time/data_wait_s": 1.5}
            append_row(folder.path / "metrics.jsonl", row)
        folder.log_event("spike", "loss <script>alert(1)</script> rose")
    video = run_dir / "joint" / "validation" / "joint-a#b c.mp4"
    video.parent.mkdir()
    video.write_bytes(b"video")
    video.with_suffix(".png").write_bytes(b"sheet")
    return run_dir


def test_page_shows_stages_charts_plan_events_and_videos(run: Path) -> None:
    page = write_run_page(run)
    assert page == run / "report" / "index.html"
    text = html.unescape(page.read_text())
    for title in (
        "losses",
        "losses by task",
        "speed",
        "seconds of a step",
        "gradient norm and learning rate",
    ):
        assert text.count(f"<h3>{title}</h3>") == 2  # one for each stage
    steps = Config().train.stage("joint").steps
    assert f'<td>joint</td><td>steps</td><td class="n">{steps}</td>' in re.sub(r"\s*\n\s*", "", text)
    assert "<td>share of time waiting for data</td>" in text
    assert "0.5</td>" in text
    source = re.search(r'<video[^>]* src="([^"]+)"', page.read_text())
    assert source
    assert source[1] == "../joint/validation/joint-a%23b%20c.mp4"
    assert 'poster="../joint/validation/joint-a%23b%20c.png"' in page.read_text()
    assert page.read_text().count("Plotly.newPlot") > 4


def test_page_works_offline_and_texts_are_escaped(run: Path) -> None:
    page = write_run_page(run).read_text()
    assert "<script>alert(1)" not in page
    assert "loss &lt;script&gt;alert(1)" in page
    assert re.findall(r"<(?:script|link|img|video)[^>]*https?://[^\s>]*", page) == []
    assert len(page) < 8_000_000


def test_command_writes_the_page_and_records_it(run: Path, tmp_path: Path) -> None:
    words = ["--run", str(run), "--set", f"tracking.folder={tmp_path / 'mlflow'}", "--json"]
    done = CliRunner().invoke(typer_app("report"), words)
    assert done.exit_code == 0, done.stderr
    assert Path(json.loads(done.stdout)["page"]).is_file()
    assert list((tmp_path / "mlflow" / "artifacts").rglob("index.html"))


def test_folder_without_a_run_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training run here"):
        write_run_page(tmp_path)


@pytest.mark.parametrize("words", [[], ["--run", "r", "--corpus", "c"], ["--run", "r", "--serve"]])
def test_command_wants_a_corpus_or_a_run(words: list[str]) -> None:
    assert CliRunner().invoke(typer_app("report"), words).exit_code == 2


@given(st.lists(st.floats(-1e6, 1e6), max_size=3 * MAX_POINTS))
def test_thinned_lines_are_short_and_keep_the_mean(values: list[float]) -> None:
    rows = [{"step": step, "loss": value} for step, value in enumerate(values)]
    points = thinned(rows, "loss")
    assert len(points) <= MAX_POINTS
    assert [step for step, _ in points] == sorted(step for step, _ in points)
    if len(values) <= MAX_POINTS:
        assert [value for _, value in points] == values
    for step, value in points:
        assert 0 <= step < len(values)
        assert min(values) - 1e-6 <= value <= max(values) + 1e-6
        assert math.isfinite(value)
    assert thinned(rows, "absent") == []
