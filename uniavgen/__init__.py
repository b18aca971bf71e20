"""UniAVGen: from raw talking-head videos to a trained joint audio-video generator.

    corpus = uniavgen.Corpus("data/corpus")     # tables, samples, decisions
    run = uniavgen.Run("data/run")              # metrics, generation

`import uniavgen` costs nothing: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uniavgen.api import Corpus, Decisions, Run, Video
    from uniavgen.shards.errors import UserError
    from uniavgen.shards.sample import Sample
    from uniavgen.train.config import SamplingConfig
    from uniavgen.train.generation import Conditions

__version__ = "0.6.0"

__all__ = ["Conditions", "Corpus", "Decisions", "Run", "Sample", "SamplingConfig", "UserError", "Video"]

_MODULES = {
    "Conditions": "uniavgen.train.generation",
    "Corpus": "uniavgen.api",
    "Decisions": "uniavgen.api",
    "Run": "uniavgen.api",
    "Sample": "uniavgen.shards.sample",
    "SamplingConfig": "uniavgen.train.config",
    "UserError": "uniavgen.shards.errors",
    "Video": "uniavgen.api",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'uniavgen' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
