"""What a step found out about a source, kept on disk: a source that was interrupted goes on where it stopped.

    measured/<2 hex>/<source_id>/<step>.<key>.npz

Goes in: a dataclass with numbers, text, lists, dictionaries, further dataclasses and arrays. Comes out: its equal. Arrays are
members of the npz by their place (`faces.box`), everything else is one JSON member. Nothing is pickled. A file is complete or
not there (rename); one that cannot be read is as good as none.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

FACTS = "facts"
"""Member that holds what is no array."""

Result = TypeVar("Result")


class Results:
    """The stored results of one corpus."""

    def __init__(self, corpus_root: str | Path) -> None:
        self.root = Path(corpus_root) / "measured"

    def load(self, source_id: str, step: str, key: str, kind: type[Result]) -> Result | None:
        """The result of a step under a key, None where it was not stored or is damaged."""
        try:
            with np.load(self._path(source_id, step, key), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(arrays.pop(FACTS).tobytes())
            asked: Any = kind
            found: Result = _adapter(asked).validate_python(_put_back(facts, arrays))
            return found
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, ValidationError):
            return None

    def has(self, source_id: str, step: str, key: str) -> bool:
        """Whether a result is there; it may still turn out to be damaged."""
        return self._path(source_id, step, key).is_file()

    def save(self, source_id: str, step: str, key: str, result: Any) -> None:
        """Store a result in place of the step's earlier ones. Raises OSError where the disk is full."""
        arrays: dict[str, np.ndarray] = {}
        facts = json.dumps(_take_out(result, "", arrays), default=_plain).encode()
        path = self._path(source_id, step, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with part.open("wb") as file:
                members: dict[str, Any] = {**arrays, FACTS: np.frombuffer(facts, np.uint8)}
                np.savez_compressed(file, **members)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        for older in path.parent.glob(f"{step}.*.npz"):
            if older != path:
                older.unlink(missing_ok=True)

    def discard(self, source_id: str) -> None:
        """Forget everything about a source."""
        shutil.rmtree(self.folder(source_id), ignore_errors=True)

    def folder(self, source_id: str) -> Path:
        return self.root / source_id[:2] / source_id

    def _path(self, source_id: str, step: str, key: str) -> Path:
        return self.folder(source_id) / f"{step}.{key}.npz"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _take_out(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` as JSON values; its arrays go to `arrays`, by their place, and leave {"array": place}."""
    if isinstance(value, np.ndarray):
        arrays[place] = value
        return {"array": place}
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _take_out(getattr(value, field.name), f"{place}.{field.name}".strip("."), arrays)
            for field in fields(value)
        }
    if isinstance(value, dict):
        return {name: _take_out(part, f"{place}.{name}".strip("."), arrays) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_take_out(part, f"{place}.{index}".strip("."), arrays) for index, part in enumerate(value)]
    return value


def _put_back(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return arrays[value["array"]]
        return {name: _put_back(part, arrays) for name, part in value.items()}
    if isinstance(value, list):
        return [_put_back(part, arrays) for part in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be stored")
