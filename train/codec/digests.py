"""Digest of loaded weights, independent of the place from which they were loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def weights_digest(model: nn.Module, settings: Mapping[str, Any]) -> str:
    """Hash of all parameters and buffers (name, dtype, shape, bytes) and of the model's settings.

    Settings that only name the place of the weights (`_name_or_path`) or the loading release are left out.
    """
    import torch

    kept = {
        name: value
        for name, value in settings.items()
        if not name.startswith("_") and name != "transformers_version"
    }
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # as bytes: numpy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
