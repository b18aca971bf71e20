"""Convert a checkpoint for another number of workers, ZeRO stage or dtype, by DeepSpeed's universal format.

A universal checkpoint has one file per weight and optimizer moment
(`zero/<name>/{fp32,exp_avg,exp_avg_sq,step}.pt`), which an engine of any layout can load. DeepSpeed's own
converter writes it from ZeRO 1-3 and bf16. Two gaps are closed here: its metadata can be read only by the
same family (ZeRO 1-2, or ZeRO 3), and it does not convert fp32 training without ZeRO.
"""

from __future__ import annotations

import contextlib
import io
import logging
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.saving import STATE_TAG, path_without_wildcards
from uniavgen.train.config import TrainConfig
from uniavgen.train.engine.deepspeed_engine import is_plain

log = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE_NAMES = ("fp32", *MOMENTS)


@dataclass(frozen=True)
class Layout:
    """How the state of a run is distributed over workers (ranks)."""

    workers: int
    zero_stage: int
    dtype: str

    @staticmethod
    def of(config: TrainConfig, world: int) -> Layout:
        return Layout(world, config.deepspeed.zero_stage, config.deepspeed.dtype)

    def __str__(self) -> str:
        return f"{self.workers} worker{'s' * (self.workers != 1)}, ZeRO {self.zero_stage}, {self.dtype}"

    @property
    def plain(self) -> bool:
        """Whether DeepSpeed saves PyTorch's own optimizer (fp32 without ZeRO)."""
        return is_plain(self.zero_stage, self.dtype)

    def reads(self, saved: Layout) -> bool:
        """Whether DeepSpeed loads a checkpoint of layout `saved` without conversion."""
        return saved == self or (saved.plain and self.plain)


def convert(checkpoint: Path, out: Path, saved: Layout, now: Layout, trained: Sequence[str]) -> None:
    """Write a universal checkpoint for the layout `now` into `out`. Rank 0 calls this.

    `trained`: names of the trainable parameters in the model's order. Raises UserError if DeepSpeed cannot
    load the result.
    """
    if now.zero_stage == 0 and not now.plain:
        raise UserError(
            f"a checkpoint of {saved} cannot be resumed with ZeRO 0 in {now.dtype}",
            where=checkpoint,
            hint="set train.deepspeed.zero_stage to 1, 2 or 3",
            kind="no-conversion",
        )
    source, target = checkpoint / STATE_TAG, out / STATE_TAG
    target.mkdir(parents=True)
    if saved.plain:
        step = _from_plain(source, target, trained)
    else:
        _from_sharded(source, target)
        step = _complete(target, trained)
    _describe(source, target, step, same_dtype=saved.dtype == now.dtype)


def load_plain(engine: Any, out: Path) -> None:
    """Load a universal checkpoint into an engine that trains fp32 without ZeRO; DeepSpeed itself cannot."""
    folder = out / STATE_TAG
    state: dict[torch.nn.Parameter, dict[str, Any]] = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        tensors = {
            key: _read(folder / "zero" / name / f"{key}.pt")["param"].reshape(parameter.shape)
            for key in STATE_NAMES
        }
        parameter.data.copy_(tensors["fp32"])
        moments = {key: tensors[key].to(parameter.device) for key in MOMENTS}
        state[parameter] = {"step": _read(folder / "zero" / name / "step.pt"), **moments}
    engine.optimizer.state.update(state)
    common = _read(next(folder.glob("mp_rank_*_model_states.pt")))
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, common[counter])


def _from_sharded(source: Path, target: Path) -> None:
    """Run DeepSpeed's converter in this process, one file after another; its output goes to the log."""
    from deepspeed.checkpoint.ds_to_universal import main

    output = io.StringIO()
    with path_without_wildcards(source) as plain_source, path_without_wildcards(target) as plain_target:
        options = Namespace(
            input_folder=str(plain_source),
            output_folder=str(plain_target),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            main(options)
    log.debug("%s", output.getvalue())


def _from_plain(source: Path, target: Path, trained: Sequence[str]) -> torch.Tensor:
    """Write weights and moments of PyTorch's own optimizer state; returns its step."""
    common = _read(next(source.glob("mp_rank_*_model_states.pt")))
    step = torch.tensor(0.0)
    for index, name in enumerate(trained):
        moments = common["optimizer"]["state"][index]
        step = moments["step"]
        _write(target / "zero" / name / "step.pt", step)
        for key in STATE_NAMES:
            value = common["module"][name] if key == "fp32" else moments[key]
            _write(target / "zero" / name / f"{key}.pt", {"param": value.float(), "cat_dim": 0})
    return step


def _complete(target: Path, trained: Sequence[str]) -> torch.Tensor:
    """Rewrite tensors of ZeRO-3 as ZeRO 1-2 reads them (ZeRO-3 reads both); returns the optimizer step."""
    saved = _read(target / "zero" / "optimizer_state.pt").get("optimizer_state_dict")
    step = saved["state"][0]["step"] if saved else _read(target / "zero" / trained[0] / "step.pt")
    for name in trained:
        for key in STATE_NAMES:
            path = target / "zero" / name / f"{key}.pt"
            value = _read(path)
            if isinstance(value, torch.Tensor):
                _write(path, {"param": value, "cat_dim": 0})
        _write(target / "zero" / name / "step.pt", step)
    return step


def _describe(source: Path, target: Path, step: torch.Tensor, *, same_dtype: bool) -> None:
    """Write the metadata for both families: counters in both files, optimizer settings in both forms."""
    from deepspeed import __version__

    files = sorted(source.glob("*_model_states.pt"))
    common = {**_read(files[0]), "module": {}, "optimizer": None}
    for old in target.glob("*_model_states.pt"):
        old.unlink()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        _write(target / name, common)
    path = target / "zero" / "optimizer_state.pt"
    state = _read(path) if path.is_file() else {"param_groups": _read(files[0])["optimizer"]["param_groups"]}
    if not same_dtype:  # each dtype has its own loss scale
        state = {
            key: value for key, value in state.items() if key not in ("loss_scaler", "dynamic_loss_scale")
        }
    state["ds_version"] = __version__
    state["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": state["param_groups"]}
    _write(path, state)


def _read(path: Path) -> Any:
    """Read one of DeepSpeed's own files.

    It is unpickled: the digests of the checkpoint were checked before.
    """
    return torch.load(path, map_location="cpu", weights_only=False)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
