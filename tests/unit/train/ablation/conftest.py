"""Settings of the ablation tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tensors are small: more threads only cost time."""
    torch.set_num_threads(1)
