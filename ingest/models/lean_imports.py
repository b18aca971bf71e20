"""Import inference libraries without what they import for training and plots alone.

pyannote.audio imports PyTorch Lightning with its trainer, torchmetrics, Optuna and Matplotlib, and WhisperX
imports every pipeline of transformers. With them a worker imports 5,800 modules instead of 3,900, in twice
the CPU time, before its first source.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

UNUSED = (
    "lightning.fabric.fabric",
    "lightning.fabric.wrappers",
    "lightning.pytorch._graveyard",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.loops",
    "lightning.pytorch.strategies",
    "lightning.pytorch.trainer",
    "lightning.pytorch.utilities.compile",
    "networkx",
    "optuna",
    "pyannote.audio.telemetry",
    "pyannote.core.notebook",
    "pyannote.metrics",
    "pyannote.pipeline.optimizer",
    "sklearn",
    "torchmetrics",
    "transformers",
    "whisperx.vads",
)
"""Modules that get placeholders, with everything in them: pyannote.audio's segmentation and WhisperX's
transcription import names from them, and use none."""


class _Anything:
    """What a placeholder holds under any name: a class to inherit from or to call, without effect."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass


class _Placeholder(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (_Anything,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _PlaceholderFinder(MetaPathFinder, Loader):
    """Finds a placeholder for each of the named modules and everything in them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        inside = any(fullname == name or fullname.startswith(f"{name}.") for name in self._names)
        return ModuleSpec(fullname, self, is_package=True) if inside else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__version__"] = "0"


@contextmanager
def lean_imports() -> Iterator[None]:
    """Inside, modules of `UNUSED` that are not imported yet are placeholders. Afterwards they can be imported
    as usual; what was imported inside keeps its placeholders.
    """
    finder = _PlaceholderFinder([name for name in UNUSED if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name, module in list(sys.modules.items()):
            if isinstance(module, _Placeholder):
                del sys.modules[name]
                parent, _, last = name.rpartition(".")
                if isinstance(vars(sys.modules.get(parent, module)).get(last), _Placeholder):
                    delattr(sys.modules[parent], last)
