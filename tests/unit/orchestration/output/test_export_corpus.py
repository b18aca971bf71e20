"""The export of a corpus, read by the documented format of each project that it is written for."""

import json
import tomllib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from uniavgen.curation.config import SplitConfig
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import load_policy
from uniavgen.orchestration.cli import typer_app
from uniavgen.orchestration.output.export_corpus import frame_window
from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.write.publish import published
from uniavgen.shards.write.writer import write_shards


@pytest.fixture
def corpus(make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]) -> Corpus:
    said = ["hello dear world", "日本語", 'a "quoted"\nline', "hello dear world", "hello", "hello"]
    made = make_corpus([make_clip(f"s{i}", 0.0, "abcdef"[i], transcript=text) for i, text in enumerate(said)])
    shard(made)
    return made


def shard(corpus: Corpus) -> None:
    decide(corpus, load_policy("default"), SplitConfig(val_share=0.3))
    write_shards(corpus, ShardConfig(), caption=lambda row: ("A person sits.", "made"))


def export(corpus: Corpus, out: Path) -> Any:
    return CliRunner().invoke(
        typer_app("export-corpus"), ["--corpus", str(corpus.root), "--out", str(out), "--json"]
    )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_project_reads_the_export(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = export(corpus, out)
    assert done.exit_code == 0, done.stderr
    counts = json.loads(done.stdout)["samples"]
    decisions = corpus.read("decisions").to_pylist()
    clips = {split: {row["clip_id"] for row in decisions if row["split"] == split} for split in counts}
    assert counts == {split: len(of_split) for split, of_split in clips.items()}
    assert all(counts.values())
    for split, of_split in clips.items():
        # LTX-2 trainer: JSONL with `caption` and `video`, paths relative to the file
        ltx = read_jsonl(out / f"{split}.jsonl")
        assert {(out / row["video"]).stem for row in ltx} == of_split
        assert all((out / row["video"]).is_file() and row["caption"] for row in ltx)
        # Hugging Face videofolder: metadata.jsonl beside the files, `file_name` relative to it
        rows = read_jsonl(out / split / "metadata.jsonl")
        assert {row["file_name"] for row in rows} == {f"{clip}.mp4" for clip in of_split}
        assert all((out / split / row["file_name"]).is_file() for row in rows)
        assert len({tuple(row) for row in rows}) == 1  # one schema
    # diffusion-pipe: TOML; a .txt of the same name is the caption
    dataset = tomllib.loads((out / "dataset.toml").read_text(encoding="utf-8"))
    folder = Path(dataset["directory"][0]["path"])
    assert folder == out / "train"
    assert {path.stem for path in folder.glob("*.mp4")} == {path.stem for path in folder.glob("*.txt")}
    assert dataset["frame_buckets"] == [1, 25]  # the clips have 32 frames
    # SimpleTuner: one video dataset with captions in text files, one default place of text embeddings
    videos, texts = json.loads((out / "multidatabackend.json").read_text(encoding="utf-8"))
    assert (videos["type"], videos["dataset_type"], videos["caption_strategy"]) == (
        "local",
        "video",
        "textfile",
    )
    assert Path(videos["instance_data_dir"]) == folder
    assert videos["video"] == {"num_frames": 25, "min_frames": 25}
    assert videos["audio"]["auto_split"] is True
    assert (texts["dataset_type"], texts["default"]) == ("text_embeds", True)
    captions = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    assert all("\n" not in caption for caption in captions)  # a line is a caption
    assert all(caption.startswith("A person sits. The person says: “") for caption in captions)


def test_video_keeps_its_frames_and_gets_its_audio(
    corpus: Corpus, tmp_path: Path, clip_media: dict[str, bytes]
) -> None:
    export(corpus, tmp_path / "out")
    path = next((tmp_path / "out" / "train").glob("*.mp4"))
    with av.open(str(path)) as exported, av.open(BytesIO(clip_media["mp4"])) as original:
        assert (exported.streams.video[0].codec.name, exported.streams.audio[0].codec.name) == ("h264", "aac")
        frames = [frame.to_ndarray(format="rgb24") for frame in exported.decode(video=0)]
        expected = [frame.to_ndarray(format="rgb24") for frame in original.decode(video=0)]
    assert np.array_equal(frames, expected)  # not encoded again
    with av.open(str(path)) as exported:
        wave = np.concatenate([frame.to_ndarray()[0] for frame in exported.decode(audio=0)])
        assert exported.streams.audio[0].rate == 24_000
    assert len(wave) / 24_000 == pytest.approx(2.0, abs=0.1)
    assert wave.std() > 0.05


def test_second_export_writes_nothing_and_follows_the_shards(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(corpus, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert json.loads(export(corpus, out).stdout)["written"] == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == before
    gone = next(iter(sorted(before))).stem
    corpus.upsert(
        "clips",
        [row | {"snr_db": -30.0} for row in corpus.read("clips").to_pylist() if row["clip_id"] == gone],
    )
    shard(corpus)
    export(corpus, out)
    assert gone not in {path.stem for path in out.rglob("*.*")}
    assert published(corpus.root) == [str(out)]  # `forget` names the copy


def test_folder_of_other_files_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    done = export(corpus, tmp_path / "mine")
    assert done.exit_code == 1
    assert "not empty" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert published(corpus.root) == []


@pytest.mark.parametrize(
    ("frames", "window"),
    [([], 1), ([1], 1), ([8], 1), ([9], 9), ([32], 25), ([9, 33, 200], 33), ([9, 33], 9)],
)
def test_window_fits_half_of_the_samples(frames: list[int], window: int) -> None:
    assert frame_window(frames) == window
    assert (window - 1) % 8 == 0
