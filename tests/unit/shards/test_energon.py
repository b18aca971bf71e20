"""Megatron-Energon itself opens the shards, and finds beside them what it would have made."""

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
    """Eight clips of two voices in shards of three; voice b is val."""
    made: Corpus = make_corpus([make_clip(person, 2.0 * i, person) for person in "ab" for i in range(4)])
    decided = {"kept": True, "reason": "", "failed_rules": [], "policy_digest": "d"}
    rows = made.read("clips", ["clip_id", "source_id"]).to_pylist()
    split = {"a": "train", "b": "val"}
    made.upsert(
        "decisions",
        [{"clip_id": row["clip_id"], "split": split[row["source_id"]], **decided} for row in rows],
    )
    write_shards(made, ShardConfig(max_samples=3), caption=lambda row: ("a caption", "test"))
    return made


def test_its_own_preparation_finds_the_same(corpus: Corpus, tmp_path: Path) -> None:
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    shards, own = corpus.root / "shards", tmp_path / "own"
    tars = sorted(path.name for path in shards.glob("*.tar"))
    own.mkdir()
    for tar in tars:
        shutil.copy(shards / tar, own / tar)
    parts = [("train", "train-.*"), ("val", "val-.*")]
    WebdatasetPreparator.prepare_dataset(own, tars, split_parts_patterns=parts, workers=1)
    for tar in tars:
        assert (shards / f"{tar}.idx").read_bytes() == (own / f"{tar}.idx").read_bytes()
    theirs, ours = (json.loads((folder / ".nv-meta" / ".info.json").read_text()) for folder in (own, shards))
    assert ours == theirs
    for query in (
        "SELECT * FROM samples ORDER BY tar_file_id, sample_index",
        "SELECT * FROM sample_parts ORDER BY tar_file_id, sample_index, content_byte_offset",
        "SELECT name, tbl_name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY 1",
    ):
        rows = []
        for folder in (own, shards):
            with closing(sqlite3.connect(folder / ".nv-meta" / "index.sqlite")) as database:
                rows.append(database.execute(query).fetchall())
        assert rows[0] == rows[1]
        assert rows[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_it_reads_every_sample_of_a_split(corpus: Corpus, split: str) -> None:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        get_loader,
        get_train_dataset,
        get_val_dataset,
        stateless,
    )

    class AsTheyAre(DefaultTaskEncoder):
        cookers = (Cooker(stateless(lambda sample: sample)),)

        def batch(self, samples: list[Any]) -> Any:
            return samples

    common = {"worker_config": WorkerConfig(rank=0, world_size=1, num_workers=0), "task_encoder": AsTheyAre()}
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
