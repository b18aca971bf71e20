"""A Wan transformer of diffusers and our branch with the same random weights (CPU, fp32)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from uniavgen.train.batch import BranchInput
from uniavgen.train.model.config import BranchConfig
from uniavgen.train.model.dit import Branch
from uniavgen.train.model.pretrained import branch_key

if TYPE_CHECKING:
    import diffusers


def wan_pair(
    shape: dict[str, Any], text_dim: int, text_len: int
) -> tuple[Branch, diffusers.WanTransformer3DModel]:
    """`shape`: in_channels, heads, dim, ffn_dim and layers; patches are Wan's."""
    import diffusers

    torch.manual_seed(0)
    wan = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=shape["heads"],
        attention_head_dim=shape["dim"] // shape["heads"],
        in_channels=shape["in_channels"],
        out_channels=shape["in_channels"],
        text_dim=text_dim,
        ffn_dim=shape["ffn_dim"],
        num_layers=shape["layers"],
    )
    branch = Branch(BranchConfig(**shape, patch=(2, 2), text_dim=text_dim, text_len=text_len))
    state = {branch_key(key): value for key, value in wan.state_dict().items()}
    state["patch_embedding.weight"] = state["patch_embedding.weight"].flatten(1)
    branch.load_state_dict(state)
    return branch, wan


def velocity(branch: Branch, data: BranchInput) -> Tensor:
    """Run the branch alone, block by block, without an interaction."""
    stream = branch.begin(data, data.text, branch.rope(data))
    for block in branch.blocks:
        rows = block.modulation(stream.modulation)
        stream.x = block.attend_self(stream.x, rows, stream.layout, stream.rope)
        stream.x = block.attend_text(stream.x, stream.context, stream.context_mask)
        stream.x = block.feed_forward(stream.x, rows, stream.layout)
    return branch.finish(stream, data)
