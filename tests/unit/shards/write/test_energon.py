"""Megatron-Energon opens the shards, and its prepared preparation gives the same index files."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.sample import decode_video, from_members
from uniavgen.shards.write.writer import write_shards

Make = Callable[..., Any]


@pytest.fixture
def corpus(make_corpus: Make, make_clip: Make) -> Corpus:
    """Four clips of each of two speakers in shards of three; speaker b is in val."""
    corpus: Corpus = make_corpus([make_clip(person, 2.0 * i, person) for person in "ab" for i in range(4)])
    decided = {"kept": True, "reason": "", "failed_rules": [], "policy_digest": "d"}
    rows = corpus.read("clips", ["clip_id", "source_id"]).to_pylist()
    split = {"a": "train", "b": "val"}
    corpus.upsert(
        "decisions",
        [{"clip_id": row["clip_id"], "split": split[row["source_id"]], **decided} for row in rows],
    )
    write_shards(corpus, ShardConfig(max_samples=3), caption=lambda row: ("a caption", "test"))
    return corpus


def test_index_files_equal_those_of_energon_prepare(corpus: Corpus, tmp_path: Path) -> None:
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    shards, prepared = corpus.root / "shards", tmp_path / "prepared"
    tars = sorted(path.name for path in shards.glob("*.tar"))
    prepared.mkdir()
    for tar in tars:
        shutil.copy(shards / tar, prepared / tar)
    parts = [("train", "train-.*"), ("val", "val-.*")]
    WebdatasetPreparator.prepare_dataset(prepared, tars, split_parts_patterns=parts, workers=1)
    for tar in tars:
        assert (shards / f"{tar}.idx").read_bytes() == (prepared / f"{tar}.idx").read_bytes()
    theirs, ours = (
        json.loads((folder / ".nv-meta" / ".info.json").read_text()) for folder in (prepared, shards)
    )
    assert ours == theirs
    for query in (
        "SELECT * FROM samples ORDER BY tar_file_id, sample_index",
        "SELECT * FROM sample_parts ORDER BY tar_file_id, sample_index, content_byte_offset",
        "SELECT name, tbl_name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY 1",
    ):
        rows = []
        for folder in (prepared, shards):
            with closing(sqlite3.connect(folder / ".nv-meta" / "index.sqlite")) as database:
                rows.append(database.execute(query).fetchall())
        assert rows[0] == rows[1]
        assert rows[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_energon_reads_every_sample_of_a_split(corpus: Corpus, split: str) -> None:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        get_loader,
        get_train_dataset,
        get_val_dataset,
        stateless,
    )

    class RawSamples(DefaultTaskEncoder):
        cookers = (Cooker(stateless(lambda sample: sample)),)

        def batch(self, samples: list[Any]) -> Any:
            return samples

    common = {
        "worker_config": WorkerConfig(rank=0, world_size=1, num_workers=0),
        "task_encoder": RawSamples(),
    }
    path = str(corpus.root / "shards")
    if split == "train":
        order = {"shuffle_buffer_size": None, "max_samples_per_sequence": None, "repeat": False}
        dataset = get_train_dataset(path, split_part=split, batch_size=1, **order, **common)
    else:
        dataset = get_val_dataset(path, split_part=split, batch_size=1, **common)
    samples = [from_members(sample) for batch in get_loader(dataset) for sample in batch]
    kept = corpus.query(f"SELECT clip_id FROM decisions WHERE kept AND split = '{split}'")[
        "clip_id"
    ].to_pylist()
    assert sorted(sample.key for sample in samples) == sorted(kept)
    assert decode_video(samples[0].video).shape == (32, 96, 128, 3)
