"""DeepSpeed and transformers, imported without what they bring along for uses that a training worker does not have.

In: a process that will only train. Out: both loaded, in half the CPU time that their plain imports and the first engine
take (`tests/benchmarks/train/start.py`). A worker spends that time before its first step, and again at every restart.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNUSED = ("mlflow", "sklearn", "torchvision")
"""Optional to those who import them: DeepSpeed's autotuner, transformers' assisted generation and its image processors."""


def set_environment(device: str) -> None:
    """What must stand in the environment before DeepSpeed is imported; `device` is `cpu` or `cuda`."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # where DeepSpeed builds an extension it looks for ninja, which stands beside the interpreter
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # importing it would start a pool of compiler processes, which nothing here uses
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def import_lean(device: str) -> None:
    """Import DeepSpeed and transformers without `UNUSED`, which can be imported by others afterwards.

    transformers remembers what it found absent: only for processes that do nothing but train.
    """
    set_environment(device)
    import torch

    with _hidden(UNUSED):
        import deepspeed
        import transformers  # noqa: F401
    # DeepSpeed asks of every optimizer whether it is Muon, whose module compiles its kernels when it is imported
    compile_, torch.compile = torch.compile, _as_it_is  # type: ignore[assignment]
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        torch.compile = compile_


@contextmanager
def _hidden(packages: tuple[str, ...]) -> Iterator[None]:
    """While it lasts, packages that are not loaded yet cannot be found."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _as_it_is(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """torch.compile, as function or decorator, that compiles nothing."""
    return function or _as_it_is
