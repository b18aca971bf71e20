"""The Python API on a small corpus and run: what it returns, that it writes nothing, what importing costs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import SMALL_DATA, small_config
from made_samples import make_sample, write_shards

import uniavgen
from uniavgen.shards.corpus.tables import Corpus as CorpusTables
from uniavgen.shards.sample import Sample
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import StageConfig

HEAVY = {
    "torch",
    "ray",
    "duckdb",
    "deltalake",
    "pyarrow",
    "pandas",
    "numpy",
    "pydantic",
    "typer",
    "cv2",
    "av",
}


@pytest.fixture
def corpus(
    make_corpus: Callable[..., CorpusTables], make_clip: Callable[..., dict[str, Any]]
) -> uniavgen.Corpus:
    """Four clips of four speakers, one too bright for the default policy; two samples in the train shards."""
    rows = [make_clip(f"s{i}", 0.0, "abcd"[i], luma=250.0 if i == 3 else 110.0) for i in range(4)]
    tables = make_corpus(rows)
    write_shards(tables.root / "shards", [make_sample(row["clip_id"], 16) for row in rows[:2]])
    return uniavgen.Corpus(tables.root)


def files_below(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_importing_uniavgen_loads_nothing_heavy() -> None:
    program = "import sys, uniavgen; dir(uniavgen); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} & HEAVY == set()


def test_every_public_name_is_there_and_documented() -> None:
    for name in uniavgen.__all__:
        assert getattr(uniavgen, name).__doc__, name
        assert name in dir(uniavgen)


def test_an_unknown_attribute_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Korpus"):
        _ = uniavgen.Korpus  # type: ignore[attr-defined]


def test_a_folder_without_a_corpus_raises_user_error(tmp_path: Path) -> None:
    with pytest.raises(uniavgen.UserError, match="no corpus here"):
        uniavgen.Corpus(tmp_path)


def test_tables_as_arrow_pandas_and_duckdb(corpus: uniavgen.Corpus) -> None:
    assert corpus.arrow("clips").num_rows == 4
    assert list(corpus.pandas("clips", ["clip_id", "luma"]).luma) == [110.0, 110.0, 110.0, 250.0]
    assert len(corpus.arrow("captions")) == 0
    assert corpus.query("SELECT max(luma) AS most FROM clips").to_pylist() == [{"most": 250.0}]
    with corpus.connect() as connection:
        joined = connection.sql("SELECT count(*) FROM sources JOIN clips USING (source_id)")
        assert joined.fetchall() == [(4,)]


def test_unknown_tables_and_columns_are_named(corpus: uniavgen.Corpus) -> None:
    with pytest.raises(uniavgen.UserError, match=r"unknown table 'clip'; one of: sources, clips"):
        corpus.arrow("clip")
    with pytest.raises(uniavgen.UserError, match="unknown column of clips 'brightness'"):
        corpus.pandas("clips", ["brightness"])


def test_samples_come_in_shard_order_and_decode(corpus: uniavgen.Corpus) -> None:
    keys = [sample.key for sample in corpus.samples("train")]
    sample = corpus.sample(keys[1])
    assert len(keys) == 2
    assert sample.key == keys[1]
    assert sample.frames().shape == (16, 64, 64, 3)
    assert sample.waveform().shape == (24000,)
    assert corpus.sample().key == keys[0]


def test_samples_of_other_shards(corpus: uniavgen.Corpus, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "elsewhere", [make_sample("k", 16)], "val")
    assert [sample.key for sample in corpus.samples("val", shards=str(shards))] == ["k"]


def test_decide_writes_nothing_by_default(corpus: uniavgen.Corpus) -> None:
    before = files_below(corpus.path)
    decisions = corpus.decide("default")
    assert decisions.summary.reasons == {"luma": 1}
    assert decisions.table.num_rows == 4
    assert not decisions.summary.written
    assert len(corpus.arrow("decisions")) == 0
    assert files_below(corpus.path) == before


def test_decide_gives_what_curate_commits(corpus: uniavgen.Corpus, tmp_path: Path) -> None:
    policy = tmp_path / "bright.yaml"
    policy.write_text("name: bright\nextends: default\ndrop: [luma]\nrules: []\n")
    settings = ["curate.split.val_share=0.3"]
    asked = corpus.decide(policy, settings=settings)
    assert asked.summary.kept == 4
    written = corpus.decide(policy, settings=settings, write=True)
    assert written.summary.written
    assert corpus.arrow("decisions").equals(asked.table.cast(written.table.schema))
    assert not corpus.decide(policy, settings=settings, write=True).summary.written


def test_decide_refuses_an_unknown_setting(corpus: uniavgen.Corpus) -> None:
    with pytest.raises(uniavgen.UserError, match="did you mean curate"):
        corpus.decide(settings=["curate.polcy=default"])


def make_run(folder: Path, stages: list[str]) -> None:
    config = small_config([StageConfig(name="audio", steps=2), StageConfig(name="joint", steps=2)])
    for stage in stages:
        home = RunFolder(folder, stage)
        home.write(config=config.model_dump(mode="json"))
        lines = [{"step": 0, "time": 1.0, "fixed/audio": 2.0}]
        lines += [{"step": step, "time": 1.0 + step, "loss/total": 2.0 - step / 2} for step in (1, 2)]
        lines += [{"step": 2, "time": 4.0, "fixed/audio": 1.0}]
        (home.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        home.log_event("slow", "the loader is slow", share=0.5)


def test_metrics_and_events_of_a_run(tmp_path: Path) -> None:
    make_run(tmp_path, ["joint", "audio"])
    run = uniavgen.Run(tmp_path)
    assert run.stages == ["audio", "joint"]
    metrics = run.metrics("audio")
    assert list(metrics.step) == [0, 1, 2]
    assert metrics["loss/total"].tolist()[1:] == [1.5, 1.0]
    assert metrics["fixed/audio"].tolist()[::2] == [2.0, 1.0]
    assert run.metrics().equals(run.metrics("joint"))
    assert [event["text"] for event in run.events()] == ["the loader is slow"]


def test_a_stage_that_began_without_metrics_has_an_empty_table(tmp_path: Path) -> None:
    make_run(tmp_path, ["audio"])
    (tmp_path / "audio" / "metrics.jsonl").unlink()
    assert len(uniavgen.Run(tmp_path).metrics()) == 0


def test_runs_and_stages_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(uniavgen.UserError, match="no training run here"):
        uniavgen.Run(tmp_path / "none")
    with pytest.raises(uniavgen.UserError, match="no stage was started"):
        uniavgen.Run(tmp_path).metrics()
    make_run(tmp_path, ["audio"])
    with pytest.raises(uniavgen.UserError, match="unknown stage 'joint'; one of: audio"):
        uniavgen.Run(tmp_path).metrics("joint")


def test_generate_loads_the_model_once_and_saves_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uniavgen.train import generation

    loads: list[str] = []

    class Generator:
        def __init__(self, run_dir: Path, device: str) -> None:
            loads.append(device)
            self.device = device

        def generate(self, task: Any, given: Sample, sampler: Any, seed: int) -> generation.Generated:
            noise = np.random.default_rng(seed)
            frames = noise.integers(0, 255, (SMALL_DATA.frames, 64, 64, 3), np.uint8)
            return generation.Generated(frames, np.zeros(SMALL_DATA.frames * 1500, np.float32))

    monkeypatch.setattr(generation, "ClipGenerator", Generator)
    run, sample = uniavgen.Run(tmp_path), make_sample("k", 16)
    videos = [run.generate("joint", sample, seed=seed, device="cpu") for seed in (0, 0, 1)]
    assert loads == ["cpu"]
    assert (videos[0].frames == videos[1].frames).all()
    assert (videos[0].frames != videos[2].frames).any()
    assert videos[0].save(tmp_path / "folder" / "a.mp4").stat().st_size > 1000
    with pytest.raises(uniavgen.UserError, match="unknown task 'singing'"):
        run.generate("singing", sample)
