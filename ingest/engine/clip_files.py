"""The clips' files of each source: which stand where, how they were cut, and that none is left without a clip.

    media/<2 hex>/<clip_id>.{mp4,flac,face.npz}
    measured/<2 hex>/<source_id>/media.json     clip_id -> recipe of its files, "" while they are being cut
    measured/.cutting/<source_id>               a source whose clips are not committed yet; says which driver's run it is

A file is written aside and renamed. Before the first of a source's clips is cut, its list is written: whatever happens then,
every file is either a committed clip's or on a list under `.cutting`, by which the next run finds it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from uniavgen.ingest.engine.step_cache import Results

EXTENSIONS = ("mp4", "flac", "face.npz")


class ClipMedia:
    """The media of one corpus; `owner` names the run that cuts."""

    def __init__(self, corpus_root: Path, owner: str = "") -> None:
        self.root = Path(corpus_root)
        self.owner = owner
        self._results = Results(corpus_root)
        self._cutting = self._results.root / ".cutting"

    def path(self, clip: str, extension: str) -> Path:
        return self.root / "media" / clip[:2] / f"{clip}.{extension}"

    def begin(
        self, source_id: str, recipes: dict[str, Any], extensions: Iterable[str] = ("mp4",)
    ) -> set[str]:
        """Announce the clips that a source shall have; returns those that must be cut, as they are not there (with all of
        `extensions`) or not so."""
        asked = {clip: _digest(recipe) for clip, recipe in recipes.items()}
        known = self._list(source_id)
        there = {
            clip for clip in asked if all(self.path(clip, extension).is_file() for extension in extensions)
        }
        fresh = {clip for clip in there if known.get(clip) == asked[clip]}
        self._cutting.mkdir(parents=True, exist_ok=True)
        (self._cutting / source_id).write_text(self.owner)
        # clips of an earlier measurement stay on the list until the commit removes them
        self._write(
            source_id,
            {**dict.fromkeys(known, ""), **{clip: asked[clip] if clip in fresh else "" for clip in asked}},
        )
        self._asked = asked
        return set(asked) - fresh

    def done(self, source_id: str, clip: str) -> None:
        """A clip's picture and sound stand at their place."""
        self._write(source_id, {**self._list(source_id), clip: self._asked[clip]})

    def write(self, clip: str, extension: str, data: bytes) -> None:
        """A small file of a clip, in one piece."""
        path = self.path(clip, extension)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def keep_only(self, source_id: str, clips: Iterable[str]) -> None:
        """The source's clips are committed: whatever else is on its list goes."""
        known, kept = self._list(source_id), set(clips)
        self.remove(set(known) - kept)
        if set(known) - kept:
            self._write(source_id, {clip: digest for clip, digest in known.items() if clip in kept})
        (self._cutting / source_id).unlink(missing_ok=True)

    def remove(self, clips: Iterable[str]) -> None:
        for clip in clips:
            for extension in EXTENSIONS:
                self.path(clip, extension).unlink(missing_ok=True)

    def lacking(self, clips: Iterable[tuple[str, bool]]) -> set[str]:
        """Of clips (id, whether there is sound) those whose files are not all there; a folder is listed once."""
        folders: dict[str, list[tuple[str, bool]]] = {}
        for clip, has_audio in clips:
            folders.setdefault(clip[:2], []).append((clip, has_audio))
        found = set()
        for folder, own in folders.items():
            path = self.root / "media" / folder
            names = set(os.listdir(path)) if path.is_dir() else set()
            for clip, has_audio in own:
                if any(f"{clip}.{name}" not in names for name in EXTENSIONS if has_audio or name != "flac"):
                    found.add(clip)
        return found

    def abandoned(self, is_alive: Callable[[str], bool]) -> list[str]:
        """Sources that a run, which is no more, left half cut or not committed."""
        if not self._cutting.is_dir():
            return []
        return [path.name for path in self._cutting.iterdir() if not is_alive(path.read_text())]

    def _list(self, source_id: str) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads((self._results.folder(source_id) / "media.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def _write(self, source_id: str, clips: dict[str, str]) -> None:
        folder = self._results.folder(source_id)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".media.{os.getpid()}"
        try:
            part.write_text(json.dumps(clips))
            os.replace(part, folder / "media.json")
        finally:
            part.unlink(missing_ok=True)


def _digest(recipe: Any) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
