"""A demo-output folder with a small corpus, shards and a run, for the Python blocks of the documents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_runs import SMALL_MODEL, small_config

from uniavgen.curation.config import SplitConfig
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import load_policy
from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.weights import resolve
from uniavgen.shards.write.writer import write_shards
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import tiny_stages
from uniavgen.train.model.dual_branch import DualBranch


@pytest.fixture
def demo_output(
    tmp_path: Path, make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]
) -> Path:
    """A small `demo-output`: clips of seven speakers, decided and sharded; an untrained joint stage."""
    rows = [make_clip(f"s{i}", 0.0, "abcdef"[i], snr_db=12.0 + 3 * i) for i in range(6)]
    corpus = make_corpus([*rows, make_clip("s6", 0.0, "g", luma=250.0)], name="demo-output/corpus")
    decide(corpus, load_policy("default"), SplitConfig(val_share=0.3))
    write_shards(corpus, ShardConfig(), caption=lambda row: ("A person speaks.", "made"))
    make_run(tmp_path / "demo-output" / "run")
    return tmp_path / "demo-output"


def make_run(folder: Path) -> None:
    resolve("minilm")
    torch.manual_seed(0)
    stage = RunFolder(folder, "joint")
    stage.write(done=True, config=small_config(tiny_stages()).model_dump(mode="json"))
    stage.write_weights(DualBranch(SMALL_MODEL).state_dict())
    lines = [{"step": step, "time": float(step), "loss/total": 3 - step / 10} for step in range(5)]
    (stage.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
