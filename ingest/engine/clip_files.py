"""Media files of the clips: which exist, how they were cut, and which belong to no committed clip.

    media/<2 hex>/<clip_id>.{mp4,flac,face.npz}
    measured/<2 hex>/<source_id>/media.json     clip_id -> digest of its recipe, "" while it is being cut
    measured/.cutting/<source_id>               marks a source with uncommitted clips; holds its run

Files are written under a temporary name and renamed. A source's list is written before its first clip is cut,
so every file belongs to a committed clip or to a list marked under `.cutting`, where the next run finds it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from uniavgen.ingest.engine.step_cache import StepCache

EXTENSIONS = ("mp4", "flac", "face.npz")


class ClipFiles:
    """The media files of one corpus. `run` names the ingest run that cuts."""

    def __init__(self, corpus_root: Path, run: str = "") -> None:
        self.root = Path(corpus_root)
        self.run = run
        self._cache = StepCache(corpus_root)
        self._cutting = self._cache.root / ".cutting"

    def path(self, clip: str, extension: str) -> Path:
        return self.root / "media" / clip[:2] / f"{clip}.{extension}"

    def start_cutting(
        self, source_id: str, recipes: dict[str, Any], extensions: Iterable[str] = ("mp4",)
    ) -> set[str]:
        """List the clips that a source will have, with their recipes. Returns the clips that must be cut.

        A clip need not be cut if all its files (`extensions`) exist and were cut by the same recipe.
        """
        wanted = {clip: _digest(recipe) for clip, recipe in recipes.items()}
        listed = self._read_list(source_id)
        present = {
            clip for clip in wanted if all(self.path(clip, extension).is_file() for extension in extensions)
        }
        reusable = {clip for clip in present if listed.get(clip) == wanted[clip]}
        self._cutting.mkdir(parents=True, exist_ok=True)
        (self._cutting / source_id).write_text(self.run)
        # clips of an earlier measurement stay on the list until the commit deletes them
        entries = {clip: wanted[clip] if clip in reusable else "" for clip in wanted}
        self._write_list(source_id, {**dict.fromkeys(listed, ""), **entries})
        self._wanted = wanted
        return set(wanted) - reusable

    def mark_cut(self, source_id: str, clip: str) -> None:
        """A clip's video and audio files are in place."""
        self._write_list(source_id, {**self._read_list(source_id), clip: self._wanted[clip]})

    def write(self, clip: str, extension: str, data: bytes) -> None:
        """Write a small file of a clip atomically."""
        path = self.path(clip, extension)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def keep_only(self, source_id: str, clips: Iterable[str]) -> None:
        """The source's `clips` are committed: delete the files of all others on its list."""
        listed, kept = self._read_list(source_id), set(clips)
        self.delete(set(listed) - kept)
        if set(listed) - kept:
            self._write_list(source_id, {clip: digest for clip, digest in listed.items() if clip in kept})
        (self._cutting / source_id).unlink(missing_ok=True)

    def delete(self, clips: Iterable[str]) -> None:
        for clip in clips:
            for extension in EXTENSIONS:
                self.path(clip, extension).unlink(missing_ok=True)

    def incomplete(self, clips: Iterable[tuple[str, bool]]) -> set[str]:
        """The clips with a missing file. `clips` are pairs of id and whether there is an audio track."""
        by_folder: dict[str, list[tuple[str, bool]]] = {}
        for clip, has_audio in clips:
            by_folder.setdefault(clip[:2], []).append((clip, has_audio))
        incomplete = set()
        for folder, members in by_folder.items():
            path = self.root / "media" / folder
            names = set(os.listdir(path)) if path.is_dir() else set()
            for clip, has_audio in members:
                if any(f"{clip}.{name}" not in names for name in EXTENSIONS if has_audio or name != "flac"):
                    incomplete.add(clip)
        return incomplete

    def uncommitted_sources(self, is_alive: Callable[[str], bool]) -> list[str]:
        """Sources whose clips a run cut that died before the commit. `is_alive` takes the name of a run."""
        if not self._cutting.is_dir():
            return []
        return [path.name for path in self._cutting.iterdir() if not is_alive(path.read_text())]

    def _read_list(self, source_id: str) -> dict[str, str]:
        try:
            listed: dict[str, str] = json.loads((self._cache.folder(source_id) / "media.json").read_text())
        except (OSError, ValueError):
            return {}
        return listed

    def _write_list(self, source_id: str, clips: dict[str, str]) -> None:
        folder = self._cache.folder(source_id)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".media.{os.getpid()}"
        try:
            part.write_text(json.dumps(clips))
            os.replace(part, folder / "media.json")
        finally:
            part.unlink(missing_ok=True)


def _digest(recipe: Any) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
