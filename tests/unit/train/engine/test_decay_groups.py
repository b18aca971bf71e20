"""Weight decay off norms, biases and modulation, in the weights of DeepSpeed's engines and after
conversion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_runs import Run, small_config, train_together

from uniavgen.shards import weights
from uniavgen.train.checkpoint.run_folder import RunFolder, load_weights
from uniavgen.train.config import StageConfig

LR, DECAY = 1e-3, 50.0
STAGE = StageConfig(name="joint", batch=1, lr=LR, warmup=0, weight_decay=DECAY, decayed="matrices")
ZERO = (0, 2, 3)
MOVES = ((0, 2), (2, 0), (0, 3), (2, 3), (3, 2), (3, 0))
"""From the layout of a checkpoint to another: ZeRO stages."""
Weights = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards_dir: Path) -> Weights:
    """Weights after one step with and without decay, and after two, straight and converted."""
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    home = tmp_path_factory.mktemp("decay")

    def run(name: str, zero: int, source: str | None = None, **changes: object) -> Run:
        config = small_config([STAGE.model_copy(update={"steps": 1, **changes})], 1, every=1, zero_stage=zero)
        (home / name).mkdir()
        begun = () if source is None else (RunFolder(home / source, "joint").checkpoint(1),)
        return Run(
            config.model_copy(update={"fixed_steps": 0}), "joint", home / name, begun, accept_changes=True
        )

    runs = []
    for zero in ZERO:
        runs += [run(f"decay {zero}", zero), run(f"none {zero}", zero, weight_decay=0.0)]
    runs.insert(2, run("two steps", 0, steps=2))
    # ZeRO 3 goes last: it changes how this process rounds
    for source, zero in MOVES:
        runs.append(run(f"{source} to {zero}", zero, f"decay {source}", steps=2))
    train_together(runs, shards_dir, 1)
    assert [path.read_text() for path in sorted(home.glob("*/error-0.txt"))] == []
    return {run.run_dir.name: load_weights(run.run_dir, "joint") for run in runs}


def is_vector_or_table(name: str, value: torch.Tensor) -> bool:
    return value.dim() < 2 or ".modulation." in name


@pytest.mark.slow
@pytest.mark.parametrize("zero", ZERO)
def test_first_step_decays_matrices_alone(trained: Weights, zero: int) -> None:
    decayed, without = trained[f"decay {zero}"], trained[f"none {zero}"]
    changed = 0
    for name, value in without.items():
        if is_vector_or_table(name, value):
            assert torch.equal(decayed[name], value), name
            continue
        # AdamW: p - lr * decay * p - update, and the update is the same
        start = (value - decayed[name]) / (LR * DECAY)
        torch.testing.assert_close(start, value, atol=3 * LR, rtol=1e-2, msg=name)
        changed += not torch.equal(decayed[name], value)
    assert changed > 20


@pytest.mark.slow
@pytest.mark.parametrize(("source", "zero"), MOVES)
def test_groups_survive_conversion_to_another_zero_stage(trained: Weights, source: int, zero: int) -> None:
    for name, value in trained["two steps"].items():
        moved = trained[f"{source} to {zero}"][name]
        torch.testing.assert_close(moved, value, atol=2e-5, rtol=1e-3, msg=name)
