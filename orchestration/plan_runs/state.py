"""The records of a plan in its state folder. Everything is replaced by rename or appended line by line.

plan/plan.lock          held by the command that runs the plan
plan/alive.json         its heartbeat: the step that runs, and since when
plan/steps/<step>.json  what the last finished run of a step depended on, wrote and returned
plan/journal.jsonl      one line for each start and end of a run or a step
plan/runs/<time>.yaml   the resolved plan of each run
plan/tracking.json      the MLflow run
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uniavgen.shards.atomic_files import replace_file
from uniavgen.shards.errors import UserError
from uniavgen.shards.jsonl import append_row, read_rows


@dataclass(frozen=True)
class Fingerprint:
    """What the result of a step depends on."""

    settings: dict[str, Any]
    inputs: dict[str, str]
    code: str


@dataclass(frozen=True)
class Finished:
    """The last finished run of a step. `at`: seconds since 1970."""

    at: float
    seconds: float
    depends: Fingerprint
    outputs: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


class PlanState:
    """The state folder of a plan. Reading it needs no lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = folder / "plan.lock"
        self.alive = folder / "alive.json"
        self.journal = folder / "journal.jsonl"

    def create(self) -> None:
        """Make the folder. Raises UserError if it cannot be written."""
        try:
            (self.folder / "steps").mkdir(parents=True, exist_ok=True)
            (self.folder / "runs").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the plan's folder cannot be written: {error.strerror}",
                where=self.folder,
                hint="check rights and space, or name another `folder` in the plan",
            ) from error

    def finished(self, step: str) -> Finished | None:
        """The record of a step; None if it never finished, or the record is damaged."""
        try:
            content = json.loads((self.folder / "steps" / f"{step}.json").read_text())
            content["depends"] = Fingerprint(**content["depends"])
            return Finished(**content)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write_finished(self, step: str, record: Finished) -> None:
        text = json.dumps(asdict(record), default=str, indent=1) + "\n"
        replace_file(self.folder / "steps" / f"{step}.json", text.encode())

    def remove_finished(self, step: str) -> None:
        """Forget that a step finished, before it runs again: then a kill cannot leave a stale record."""
        (self.folder / "steps" / f"{step}.json").unlink(missing_ok=True)

    def log(self, event: str, step: str = "", **values: Any) -> None:
        """Append a line to the journal."""
        append_row(self.journal, {"time": round(time.time(), 3), "event": event, "step": step, **values})

    def events(self) -> list[dict[str, Any]]:
        """All lines of the journal, oldest first."""
        return read_rows(self.journal).rows

    def last_event(self, step: str) -> dict[str, Any]:
        """The last line of a step; {} if there is none."""
        return next((row for row in reversed(self.events()) if row.get("step") == step), {})

    def store_plan(self, document: dict[str, Any], code_version: str) -> Path:
        """Write the resolved plan of a run, and return its file. Equal plans share one file."""
        import yaml

        body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        runs = self.folder / "runs"
        for path in sorted(runs.glob("*.yaml"), reverse=True)[:1]:
            if path.read_text().partition("\n")[2] == body:
                return path
        stamp = time.strftime("%Y%m%d-%H%M%S")
        number = 0
        while (path := runs / f"{stamp}{f'-{number}' if number else ''}.yaml").exists():
            number += 1
        command = f"# resolved by uniavgen {code_version}; to repeat: uniavgen run {os.path.abspath(path)}"
        replace_file(path, f"{command}\n{body}".encode())
        return path
