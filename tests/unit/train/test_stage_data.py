"""A stage goes on where it stopped although its corpus or its batch changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import Run, small_config, train_together
from made_samples import make_sample, write_shards

from uniavgen.shards.jsonl import read_rows
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import StageConfig

pytestmark = pytest.mark.slow
STAGE = StageConfig(name="audio", steps=6, batch=2)
STOP = 3
KEYS = [f"clip{number}" for number in range(8)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`straight`: six steps; the others resume it after three, on other shards or with another batch."""
    home = tmp_path_factory.mktemp("runs")
    samples = {key: make_sample(key, 24 + number, seed=number) for number, key in enumerate(KEYS)}
    samples["short"] = make_sample("short", 6, seed=9)  # shorter than the window of 13 frames
    shards = write_shards(home / "shards", list(samples.values()))

    def run(name: str, stage: StageConfig = STAGE, **given: Any) -> Run:
        config = small_config([stage], 1, every=STOP).model_copy(update={"trace": True, "fixed_steps": 0})
        return Run(config, "audio", home / name, shards=shards, **given)

    (home / "straight").mkdir()
    straight = run("straight")
    train_together([straight], shards, 1)
    gone = keys_by_step(home / "straight")[STOP][0]
    left = [sample for key, sample in samples.items() if key != gone]
    other = write_shards(home / "other", [make_sample("new", 30, seed=20), *reversed(left)])
    todo = {
        "again": run("again"),
        "changed corpus": replace(run("changed corpus"), shards=other),
        "larger batch": run("larger batch", STAGE.model_copy(update={"batch": 4}), accept_changes=True),
        "old": replace(run("old"), shards=other),
        "old accepted": replace(run("old accepted", accept_changes=True), shards=other),
    }
    for name in todo:
        shutil.copytree(home / "straight", home / name)
        stage = home / name / "audio"
        shutil.rmtree(stage / "checkpoints" / f"step-{STAGE.steps}")
        for path in (stage / "trace-0.jsonl", stage / "events.jsonl", stage / "model.safetensors"):
            path.unlink()
        if name.startswith("old"):  # release 0.3.0 kept no order of samples
            (stage / "order.npz").unlink()
    train_together(list(todo.values()), shards, 1)
    return {name: home / name for name in ["straight", *todo]}


def keys_by_step(run_dir: Path) -> dict[int, list[str]]:
    rows = [json.loads(line) for line in (run_dir / "audio" / "trace-0.jsonl").read_text().splitlines()]
    return {row["step"]: [row["keys"][str(index)] for index in range(len(row["keys"]))] for row in rows}


def said(run_dir: Path, part: str) -> list[str]:
    rows = read_rows(RunFolder(run_dir, "audio").events).rows
    return [row["text"] for row in rows if part in row["text"]]


def test_resumed_stage_deals_the_samples_of_the_straight_one(runs: dict[str, Path]) -> None:
    straight = keys_by_step(runs["straight"])
    assert keys_by_step(runs["again"]) == {step: straight[step] for step in (3, 4, 5)}


def test_short_clip_is_never_dealt_and_said(runs: dict[str, Path]) -> None:
    assert not any(
        "short" in keys for name in runs if name != "old" for keys in keys_by_step(runs[name]).values()
    )
    (line,) = said(runs["straight"], "train samples")
    assert line.startswith("8 of 9 train samples (89 %), 0.00 of 0.00 h, last the 0.81 s of the window")


def test_stage_continues_without_clip_that_is_gone(runs: dict[str, Path]) -> None:
    straight, changed = keys_by_step(runs["straight"]), keys_by_step(runs["changed corpus"])
    gone = straight[STOP][0]
    for step in (3, 4, 5):
        for before, now in zip(straight[step], changed[step], strict=True):
            assert now == before if before != gone else now in KEYS and now != gone
    (line,) = said(runs["changed corpus"], "in no shard any more")
    assert line.startswith(
        f"1 of the 8 train samples with which the stage began are in no shard any more, first {gone};"
    )
    assert RunFolder(runs["changed corpus"], "audio").done


def test_changed_batch_keeps_its_place_and_says_so(runs: dict[str, Path]) -> None:
    straight, larger = keys_by_step(runs["straight"]), keys_by_step(runs["larger batch"])
    assert larger[3] == straight[3] + straight[4]
    assert larger[4][:2] == straight[5]
    assert said(runs["larger batch"], "the batch is 4 instead of 2: samples continue at number 6")


def test_stage_of_old_release_on_changed_corpus_needs_acceptance(runs: dict[str, Path]) -> None:
    error = (runs["old"] / "error-0.txt").read_text()
    assert error.startswith("shards-changed: 1 of the run's 1 shards are missing or changed")
    assert "--accept-changes" in error
    assert said(runs["old accepted"], "the order of samples begins anew on the present shards")
    assert sorted(keys_by_step(runs["old accepted"])) == [3, 4, 5]
