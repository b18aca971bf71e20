"""Identity of loaded weights: a hash that changes whenever a number of the model does, wherever it was loaded from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def weights_digest(model: nn.Module, settings: Mapping[str, Any]) -> str:
    """Hash of all parameters and buffers by name, type, shape and bytes, and of the settings that go with them.

    Settings that only say where the weights came from (`_name_or_path`) or which release loads them are left out.
    """
    import torch

    told = {
        name: value
        for name, value in settings.items()
        if not name.startswith("_") and name != "transformers_version"
    }
    whole = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # bytes as they are: numpy has no bfloat16
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return whole.hexdigest()[:16]
