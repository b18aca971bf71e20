"""Results of evaluation: one line per video, level and meter, so that a second run measures only what lacks.

`results.jsonl` grows line by line; `results.parquet` is the same as a table of one row per value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uniavgen.orchestration.evaluation.meters import Measured, Meter
from uniavgen.shards.jsonl import append_row, read_rows

GENERATED = "generated"
"""Level of the evaluated videos; the others are those of `controls`."""
FILE = "results.jsonl"


@dataclass(frozen=True)
class Result:
    """What one meter found in one video at one level. `error` says why it found nothing, "" if it ran."""

    key: str
    name: str
    level: str
    meter: str
    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    vectors: Mapping[str, list[float]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


def result_key(meter: Meter, level: str, *inputs: str) -> str:
    """Key of a result: changes with the meter's version and settings, the level and the inputs' digests."""
    parts = json.dumps([meter.name, meter.version, meter.key, list(meter.metrics), level, *inputs])
    return hashlib.sha256(parts.encode()).hexdigest()[:24]


class ResultStore:
    """The results of one output folder, by key. Damaged lines are measured again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self._known: dict[str, Result] = {}
        for row in read_rows(self.path).rows:
            result = _result(row)
            if result is not None:
                self._known[result.key] = result

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Result | None:
        """The result of a key; None if it was never measured."""
        return self._known.get(key)

    def add(self, result: Result) -> Result:
        """Append a result to the file, and return it."""
        append_row(self.path, asdict(result))
        self._known[result.key] = result
        return result


def result_of(key: str, name: str, level: str, meter: str, measured: Measured) -> Result:
    """The result of a meter that ran."""
    return Result(key, name, level, meter, measured.values, measured.vectors, measured.notes)


def table_rows(results: Iterable[Result]) -> Iterator[dict[str, Any]]:
    """One row per value: video, level, metric, value, weight, meter; and one per meter that failed."""
    for result in results:
        row = {"video": result.name, "level": result.level, "meter": result.meter, "error": result.error}
        if result.error:
            yield row | {"metric": None, "value": None, "weight": None}
        for metric, (value, weight) in result.values.items():
            yield row | {"metric": metric, "value": value, "weight": weight}


def write_table(path: Path, results: Iterable[Result]) -> None:
    """Write `results.parquet`: the results of this run, not older ones of the same folder."""
    import os

    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float64()
    columns = {"video": text, "level": text, "meter": text, "metric": text, "value": number, "weight": number}
    schema = pa.schema([*columns.items(), ("error", text)])
    part = path.with_name(f".{path.name}.part")
    pq.write_table(pa.Table.from_pylist(list(table_rows(results)), schema=schema), part)
    os.replace(part, path)


def _result(row: Mapping[str, Any]) -> Result | None:
    """A stored line; None if it is not one."""
    try:
        values = {str(name): (float(value), float(weight)) for name, (value, weight) in row["values"].items()}
        names = ("key", "name", "level", "meter", "error")
        return Result(**{name: str(row[name]) for name in names}, values=values, vectors=row["vectors"],
                      notes=row["notes"])  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
