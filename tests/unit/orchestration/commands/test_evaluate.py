"""`uniavgen evaluate`: results of a run of the command; bad input is one line, before the work."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from uniavgen.orchestration import cli
from uniavgen.orchestration.commands.evaluate import codec_pass
from uniavgen.orchestration.config import load_config
from uniavgen.orchestration.output.video_file import write_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a.mp4").write_bytes(b"x")
    (tmp_path / "few").mkdir()
    for name in "ab":
        (tmp_path / "few" / f"{name}.mp4").write_bytes(b"x")
    (tmp_path / "enough").mkdir()
    for name in "abc":
        (tmp_path / "enough" / f"{name}.mp4").write_bytes(b"x")
    (tmp_path / "run").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("", 2, "--run DIR or --videos DIR"),
        ("--run run", 2, "--corpus DIR"),
        ("--videos made --protocol grit", 2, "one of: paper"),
        ("--videos absent --real made", 1, "no folder of videos"),
        ("--videos run --real made", 1, "no videos"),
        ("--videos made", 1, "at least 3 real clips"),
        ("--videos made --real few", 1, "there are 2"),
        ("--videos made --corpus run", 1, "uniavgen ingest"),
        ("--videos made --protocol grid --real few", 1, "bbaf2n"),
        ("--videos made --real enough --set evaluate.weights.dino=/absent", 1, "evaluate.weights.dino"),
        (
            "--videos made --real enough --set evaluate.weights.features=/absent",
            1,
            "evaluate.weights.features",
        ),
        ("--videos made --real enough --set evaluate.meters=[lips]", 2, "one of: words"),
        ("--videos made --real enough --set evaluate.controls=1", 2, "controls"),
    ],
)
def test_bad_input_is_one_line_before_the_work(
    folder: Path, arguments: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(cli.typer_app("evaluate"), arguments.split())
    assert done.exit_code == code, done.output
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert sorted(folder.rglob("*")) == before


def shifting_video(path: Path, seed: int, speed: int) -> None:
    """A blurred texture that moves by `speed` pixels a frame, with a tone."""
    import cv2

    noise = np.random.default_rng(seed).integers(0, 255, (96, 300, 3)).astype(np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 2)
    frames = np.stack([texture[:, speed * at : speed * at + 96] for at in range(16)])
    tone = 0.2 * np.sin(np.arange(24_000) / 20)
    write_video(path, frames, (96, 96), tone.astype(np.float32))


def test_command_writes_scores_table_and_page_and_continues(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "real").mkdir()
    for number in range(3):
        shifting_video(tmp_path / "made" / f"m{number}.mp4", number, 2)
        shifting_video(tmp_path / "real" / f"r{number}.mp4", 10 + number, 6)
    words = ["--videos", str(tmp_path / "made"), "--real", str(tmp_path / "real"), "--json"]
    words += ["--set", "evaluate.meters=[motion]", "--set", "evaluate.codec=false"]
    done = CliRunner().invoke(cli.typer_app("evaluate"), words)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    out = tmp_path / "made" / "evaluation"
    assert {file.name for file in out.iterdir()} >= {"index.html", "scores.json", "results.parquet"}
    score = next(entry for entry in summary["scores"] if entry["metric"] == "motion-dis")
    assert score["reported"]
    # 2 px a frame is 4 px a pair of thinned frames, at 256 px 10.7; real clips move three times as much
    assert score["score"]["value"] == pytest.approx(2 * 2 * 256 / 96, rel=0.15)
    assert score["controls"]["real"] == pytest.approx(3 * score["score"]["value"], rel=0.15)
    assert score["score"]["low"] <= score["score"]["value"] <= score["score"]["high"]
    table = pq.read_table(out / "results.parquet").to_pandas()
    assert len(table[table.metric == "motion-dis"]) == 3 + 3 * 3
    before = (out / "results.jsonl").read_bytes()
    again = CliRunner().invoke(cli.typer_app("evaluate"), words)
    assert json.loads(again.stdout)["scores"] == summary["scores"]
    assert (out / "results.jsonl").read_bytes() == before


def test_codec_that_takes_crops_only_has_no_ceiling_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert codec_pass(None, load_config("talk")) is None
    assert "not measured" in "".join(capsys.readouterr())
    assert codec_pass(None, load_config("tiny")) is not None
