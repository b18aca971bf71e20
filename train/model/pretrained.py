"""Load Wan checkpoints into a branch, in the original or the diffusers layout, and export the model's
weights.

A checkpoint is a `.safetensors` file, or a folder of them (sharded, with or without an index). The model is
built on the meta device and takes tensors one at a time, so there is never a second copy in memory. Every key
is reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from uniavgen.shards.errors import UserError
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.dit import Branch
from uniavgen.train.model.dual_branch import DualBranch

FROM_DIFFUSERS = (
    (r"^condition_embedder\.(time|text)_embedder\.linear_1\.", r"\1_embedding.0."),
    (r"^condition_embedder\.(time|text)_embedder\.linear_2\.", r"\1_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"^proj_out\.", "head.head."),
)
"""Names of diffusers' WanTransformer3DModel -> names of the original repository, applied in this order."""

IMAGE_KEYS = (
    r"^img_emb\.|\.(k_img|v_img|norm_k_img|norm_added_[qk]|add_[kv]_proj)\."
    r"|^condition_embedder\.image_embedder\.|^freqs$"
)
"""Weights of Wan's image-to-video models that this model does not have."""


@dataclass
class LoadReport:
    """Keys of a checkpoint: `taken`, `renamed` (name in the file -> ours), `unused`, `new` in the model."""

    taken: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.taken)} taken, {len(self.renamed)} renamed"
        counts += f", {len(self.new)} new, {len(self.unused)} unused"
        named = [
            f"{name}: {', '.join(keys)}"
            for name, keys in (("new", self.new), ("unused", self.unused))
            if keys
        ]
        return "; ".join([counts, *named])


def build_model(
    config: ModelConfig,
    *,
    video: str | Path | None = None,
    audio: str | Path | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[DualBranch, dict[str, LoadReport]]:
    """A model with checkpoints in the named branches and the other parts initialised from `seed`, on the CPU.

    Also returns a report per loaded branch. Raises UserError for unknown keys, other shapes and unreadable
    files.
    """
    with torch.device("meta"):
        model = DualBranch(config)
    reports = {}
    for name, branch, path in (("video", model.video, video), ("audio", model.audio, audio)):
        if path is not None:
            reports[name] = load_branch(branch, path, dtype=dtype)
    initialise(model, seed)
    return (model if dtype is None else model.to(dtype)), reports


def load_branch(
    branch: Branch, path: str | Path, *, skip: tuple[str, ...] = (), dtype: torch.dtype | None = None
) -> LoadReport:
    """Assign a checkpoint's tensors to a branch, except names (ours) that start with one of `skip`.

    Raises UserError naming the first key that is unknown or has another shape; the branch must not be used
    then.
    """
    report, shapes = LoadReport(), {name: value.shape for name, value in branch.state_dict().items()}
    missing = set(shapes)
    for key, tensor in checkpoint_tensors(Path(path)):
        name = branch_key(key)
        if re.search(IMAGE_KEYS, key) or any(name.startswith(prefix) for prefix in skip):
            report.unused.append(key)
            continue
        if name not in shapes:
            raise UserError(f"unknown key {key} in the checkpoint", where=path, kind="unknown-key")
        if name == "patch_embedding.weight" and branch.config.places is None:
            tensor = tensor.flatten(1)
        if tensor.shape != shapes[name]:
            raise UserError(
                f"{key} has shape {list(tensor.shape)}, the model's is {list(shapes[name])}",
                where=path,
                hint="choose the configuration that the checkpoint was made with",
                kind="wrong-shape",
            )
        branch.load_state_dict(
            {name: tensor if dtype is None else tensor.to(dtype)}, strict=False, assign=True
        )
        missing.discard(name)
        if name == key:
            report.taken.append(key)
        else:
            report.renamed[key] = name
    report.new = sorted(missing)
    return report


def load_branches(
    model: nn.Module, checkpoints: Mapping[str, str], skip: Sequence[str], loaded: Collection[str] = ()
) -> dict[str, LoadReport]:
    """Load checkpoints into the branches `video` and `audio` of a model, in fp32; reports by branch.

    `skip`: prefixes such as `audio.head` that are not loaded; `loaded`: names of weights that another stage
    gave. Raises UserError for a branch that the model lacks or that another stage gave, and for weights that
    the checkpoint lacks.
    """
    reports = {}
    for name, path in checkpoints.items():
        branch = getattr(model, name, None)
        if branch is None or any(key.startswith(f"{name}.") for key in loaded):
            why = "has no such branch" if branch is None else "takes this branch from the stage before"
            raise UserError(
                f"pretrained.{name} is named, but the stage {why}", where=path, kind="pretrained-misplaced"
            )
        skipped = tuple(prefix.removeprefix(f"{name}.") for prefix in skip if prefix.startswith(f"{name}."))
        report = load_branch(branch, path, skip=skipped, dtype=torch.float32)
        missing = [key for key in report.new if not key.startswith(skipped)] if skipped else report.new
        if missing:
            raise UserError(
                f"{len(missing)} weights of the {name} branch are not in the checkpoint: "
                f"{', '.join(missing[:3])}",
                where=path,
                hint="name another checkpoint, or list the parts to initialise at random in pretrained.skip",
                kind="weights-mismatch",
            )
        reports[name] = report
    return reports


def branch_key(key: str) -> str:
    """Our name of a Wan weight, from either layout."""
    key = key.removeprefix("model.diffusion_model.")
    for pattern, name in FROM_DIFFUSERS:
        key = re.sub(pattern, name, key)
    return re.sub(r"(^|\.)modulation$", r"\1modulation.table", key)


def wan_state_dict(branch: Branch) -> dict[str, Tensor]:
    """A branch's weights under the original Wan names and shapes; the inverse of loading them.

    Wan has no weights per place: with `places` they keep our shape.
    """
    ph, pw = branch.config.patch
    state = {}
    for name, value in branch.state_dict().items():
        if name == "patch_embedding.weight" and branch.config.places is None:
            value = value.unflatten(1, (branch.config.in_channels, 1, ph, pw))
        state[name.replace("modulation.table", "modulation")] = value
    return state


VIDEO_FILE, AUDIO_FILE, ADDED_FILE = "video.safetensors", "audio.safetensors", "interaction.safetensors"
ADDED_PARTS = ("interactions.", "speech_text.")
"""What UniAVGen adds to the two Wan models."""


def export_tensors(model: DualBranch) -> dict[str, dict[str, Tensor]]:
    """File name -> tensors: both branches under Wan's names, the added parts under our names."""
    added = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(ADDED_PARTS)}
    return {
        VIDEO_FILE: wan_state_dict(model.video),
        AUDIO_FILE: wan_state_dict(model.audio),
        ADDED_FILE: added,
    }


def load_export(config: ModelConfig, folder: Path) -> tuple[DualBranch, list[str]]:
    """The model from the files of `export_tensors`, on the CPU, and the names of weights that they lack."""
    from safetensors.torch import load_file

    model, reports = build_model(config, video=folder / VIDEO_FILE, audio=folder / AUDIO_FILE)
    added = load_file(folder / ADDED_FILE)
    missing = [name for report in reports.values() for name in report.new]
    missing += [name for name in model.state_dict() if name.startswith(ADDED_PARTS) and name not in added]
    model.load_state_dict(added, strict=False)
    return model, missing


def checkpoint_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every key and tensor of a safetensors file or folder, one at a time.

    Raises UserError for missing files.
    """
    from safetensors import SafetensorError, safe_open

    for file in _files(path):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                    yield key, tensors.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"unreadable checkpoint: {error}", where=file, kind="damaged-checkpoint"
            ) from error


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    indexes = sorted(path.glob("*.safetensors.index.json"))
    if indexes:
        files = [
            path / name for name in sorted(set(json.loads(indexes[0].read_text())["weight_map"].values()))
        ]
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files or not all(file.is_file() for file in files):
        missing = [file.name for file in files if not file.is_file()] or ["*.safetensors"]
        raise UserError(
            f"no {', '.join(missing)}",
            where=path,
            hint="name a file or folder of safetensors",
            kind="missing-weights",
        )
    return files


def initialise(model: nn.Module, seed: int) -> None:
    """Initialise every module whose parameters are still on the meta device, from `seed`, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            parameters = list(module.parameters(recurse=False))
            if not any(p.is_meta for p in parameters):
                continue
            if not all(p.is_meta for p in parameters):
                raise UserError(f"the checkpoint has only some weights of {name}", kind="unknown-key")
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
