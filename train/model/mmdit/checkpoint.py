"""Load and write weights in the layout of MMAudio's released checkpoints.

A released file is a flat dictionary of fp32 tensors (`.pth`), a training checkpoint one with more beside
`weights`. Names differ from ours, shapes do not. Streams that MMAudio lacks follow the same naming rules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.train.model.mmdit.config import AUDIO, MMAUDIO, SYNC, MMDiTConfig, mmaudio
from uniavgen.train.model.mmdit.network import MMDiT
from uniavgen.train.model.parts import is_under
from uniavgen.train.model.pretrained import checkpoint_tensors

TABLES = {"t_embed.freqs", "latent_rot", "clip_rot"}
"""Tables that some files hold and that are computed here."""

RULES = (
    (r"^scale\.", "latent_"),
    (r"^inputs\.sync\.positions$", "sync_pos_emb"),
    (r"^inputs\.(?:streams\.)?(\w+?)\.(?:projection\.)?project\.", r"\1_input_proj.0."),
    (r"^inputs\.transcript\.", "transcript_encoder."),
    (r"^pools\.streams\.(\w+)\.", r"\1_cond_proj."),
    (r"^pools\.mlp\.", "global_cond_mlp."),
    (r"^time\.", "t_embed."),
    (r"^joint\.(\d+)\.audio\.", r"joint_blocks.\1.latent_block."),
    (r"^joint\.(\d+)\.(\w+)\.", r"joint_blocks.\1.\2_block."),
    (r"^fused\.", "fused_blocks."),
    (r"^final\.", "final_layer."),
    (r"\.modulation\.", ".adaLN_modulation.1."),
)
"""Our names -> released names, applied in this order."""


def released_name(config: MMDiTConfig, name: str) -> str:
    """The released name of one of our weights."""
    activations = {AUDIO: config.audio_activation, **{s.name: s.activation for s in config.streams}}
    if config.frame:
        activations[SYNC] = config.frame.activation
    match = re.match(r"^inputs\.(?:streams\.)?(\w+)\.(?:projection\.)?mlp\.(.*)$", name)
    if match:
        # an activation takes a place in the released sequence
        place = 1 if activations[match[1]] == "none" else 2
        return f"{match[1]}_input_proj.{place}.{match[2]}"
    match = re.match(r"^inputs\.empty\.(\w+)\.features$", name)
    if match:
        frozen = any(s.name == match[1] and s.empty == "frozen" for s in config.streams)
        return "empty_string_feat" if frozen and match[1] == "text" else f"empty_{match[1]}_feat"
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


def released_state(model: MMDiT) -> dict[str, Tensor]:
    """The model's weights under their released names."""
    return {released_name(model.config, name): value for name, value in model.state_dict().items()}


def load_released(
    model: MMDiT, path: str | Path, *, skip: Sequence[str] = (), loaded: Collection[str] = ()
) -> str:
    """Load a checkpoint into a model, which may be on the meta device; returns a report line.

    Every key must have a place in the model and every weight of the model a key, except those under `skip`
    (prefixes of our names or of the file's) and those in `loaded`. Raises UserError naming the first one.
    """
    state = read_checkpoint(Path(path))
    names = {released_name(model.config, name): name for name in model.state_dict()}
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    taken = {}
    for key, tensor in state.items():
        name = names.get(key)
        if is_under(key, skip) or (name is not None and is_under(name, skip)):
            continue
        if name is None:
            raise UserError(
                f"unknown key {key} in the checkpoint", where=path, hint=_size_hint(state), kind="unknown-key"
            )
        if tensor.shape != shapes[name]:
            raise UserError(
                f"{key} has shape {list(tensor.shape)}, the model's is {list(shapes[name])}",
                where=path,
                hint=_size_hint(state),
                kind="wrong-shape",
            )
        taken[name] = tensor.float()
    missing = [n for n in shapes if n not in taken and n not in loaded and not is_under(n, skip)]
    if missing:
        raise UserError(
            f"{len(missing)} weights of the model are not in the checkpoint: {_some(missing)}",
            where=path,
            hint=_size_hint(state),
            kind="weights-mismatch",
        )
    on_meta = any(value.is_meta for value in model.state_dict().values())
    model.load_state_dict(taken, strict=False, assign=on_meta)
    return f"{len(taken)} taken, {len(state) - len(taken)} skipped, {len(shapes) - len(taken)} new"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.pth` file or of safetensors, without tables. Raises UserError for another file."""
    if not path.exists():
        raise UserError("no such checkpoint", where=path, kind="missing-weights")
    if path.is_dir() or path.suffix == ".safetensors":
        state: Mapping[str, object] = dict(checkpoint_tensors(path))
    else:
        try:
            # weights_only: a file cannot run code
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"unreadable checkpoint: {reason[0]}", where=path, kind="damaged-checkpoint"
            ) from error
    if isinstance(state, Mapping) and isinstance(state.get("weights"), Mapping):
        state = state["weights"]  # type: ignore[assignment]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError("the checkpoint is no dictionary of tensors", where=path, kind="damaged-checkpoint")
    return {key: value for key, value in state.items() if key not in TABLES and isinstance(value, Tensor)}


def checkpoint_size(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Width, channels, N1 and N2 of a checkpoint, as far as its keys show them."""
    size = {"joint_layers": _count(state, "joint_blocks"), "audio_layers": _count(state, "fused_blocks")}
    if "final_layer.conv.weight" in state:
        size["channels"], size["dim"] = state["final_layer.conv.weight"].shape[:2]
    return size


def _size_hint(state: Mapping[str, Tensor]) -> str:
    """What the checkpoint is, for the end of a message."""
    size = checkpoint_size(state)
    for name in MMAUDIO:
        config = mmaudio(name)
        second = "clip_input_proj.2.w1.weight" in state
        if size == {key: getattr(config, key) for key in size} and second == name.endswith("-v2"):
            return f"the checkpoint is of the size {name}"
    return "the checkpoint has " + ", ".join(f"{key} {value}" for key, value in size.items())


def _count(keys: Iterable[str], prefix: str) -> int:
    return len({key.split(".")[1] for key in keys if key.startswith(f"{prefix}.")})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
