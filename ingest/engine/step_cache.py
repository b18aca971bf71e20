"""Step results on disk, so that an interrupted source continues at the step where it stopped.

    measured/<2 hex>/<source_id>/<step>.<key>.npz

A result is a dataclass of numbers, text, lists, dictionaries, further dataclasses and arrays. Arrays are npz
members named by their path in it (`faces.box`); everything else is one JSON member. Nothing is pickled. Files
are replaced atomically; one that cannot be read counts as absent.
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

JSON_MEMBER = "facts"
"""The npz member that holds everything except arrays."""

Result = TypeVar("Result")


class StepCache:
    """The stored step results of one corpus."""

    def __init__(self, corpus_root: str | Path) -> None:
        self.root = Path(corpus_root) / "measured"

    def load(self, source_id: str, step: str, key: str, kind: type[Result]) -> Result | None:
        """The result of a step under a key; None if it is absent or damaged."""
        try:
            with np.load(self._path(source_id, step, key), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(arrays.pop(JSON_MEMBER).tobytes())
            result_class: Any = kind  # mypy does not see that type[Result] is hashable
            result: Result = _adapter(result_class).validate_python(_insert_arrays(facts, arrays))
            return result
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, ValidationError):
            return None

    def has(self, source_id: str, step: str, key: str) -> bool:
        """Whether a result exists; it may still be damaged."""
        return self._path(source_id, step, key).is_file()

    def save(self, source_id: str, step: str, key: str, result: Any) -> None:
        """Store a result and delete the step's earlier ones. Raises OSError if the disk is full."""
        arrays: dict[str, np.ndarray] = {}
        facts = json.dumps(_extract_arrays(result, "", arrays), default=_json_scalar).encode()
        path = self._path(source_id, step, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with part.open("wb") as file:
                members: dict[str, Any] = {**arrays, JSON_MEMBER: np.frombuffer(facts, np.uint8)}
                np.savez_compressed(file, **members)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        for older in path.parent.glob(f"{step}.*.npz"):
            if older != path:
                older.unlink(missing_ok=True)

    def discard(self, source_id: str) -> None:
        """Delete all results of a source."""
        shutil.rmtree(self.folder(source_id), ignore_errors=True)

    def folder(self, source_id: str) -> Path:
        return self.root / source_id[:2] / source_id

    def _path(self, source_id: str, step: str, key: str) -> Path:
        return self.folder(source_id) / f"{step}.{key}.npz"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _extract_arrays(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` as JSON values. Its arrays are moved to `arrays` by path, each replaced by {"array": path}."""
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _extract_arrays(getattr(value, field.name), f"{path}.{field.name}".strip("."), arrays)
            for field in fields(value)
        }
    if isinstance(value, dict):
        return {
            name: _extract_arrays(item, f"{path}.{name}".strip("."), arrays) for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            _extract_arrays(item, f"{path}.{index}".strip("."), arrays) for index, item in enumerate(value)
        ]
    return value


def _insert_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return arrays[value["array"]]
        return {name: _insert_arrays(item, arrays) for name, item in value.items()}
    if isinstance(value, list):
        return [_insert_arrays(item, arrays) for item in value]
    return value


def _json_scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be stored")
