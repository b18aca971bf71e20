"""Which files an ingest is about: what the user names (videos, folders, globs, list files) becomes one sorted list.

Goes in: the arguments. Comes out: `Found`, every video once, and every file that was passed over with its name.
"""

from __future__ import annotations

import glob
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from ingest.config import MEDIA_EXTENSIONS
from shards.errors import UserError


@dataclass
class Found:
    """Absolute paths of the videos, in order and each once; `passed_over` are a folder's other files."""

    videos: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


def find_sources(arguments: list[str]) -> Found:
    """Expand files, folders (recursive), globs and `.txt` list files (a path a line, relative to the list; # comments).

    A file named outright is taken whatever its name; a folder gives its files with a video's extension. Raises UserError
    for a path that is not there, a pattern without match, a folder or list without videos, or nothing named at all.
    """
    if not arguments:
        raise UserError("no source named", do="give videos, folders, globs or a list file", kind="no-sources")
    found = Found()
    for argument in arguments:
        for path in _matches(argument):
            if path.is_dir():
                _take_folder(path, found)
            elif path.suffix.lower() == ".txt":
                _take_list(path, found)
            else:
                found.videos.append(_absolute(path))
    found.videos = sorted(set(found.videos))
    found.passed_over = sorted(set(found.passed_over) - set(found.videos))
    return found


def content_id(path: str) -> str:
    """Identity of a source: the first 32 hex digits of its content's SHA-256. Raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=path, do="check the file", kind="unreadable") from error


def _absolute(path: Path) -> str:
    return os.path.abspath(path)


def _matches(argument: str) -> list[Path]:
    path = Path(argument)
    if path.exists():
        return [path]
    if glob.has_magic(argument):
        hits = sorted(glob.glob(argument, recursive=True))
        if not hits:
            raise UserError("no file matches", where=argument, do="check the pattern", kind="no-sources")
        return [Path(hit) for hit in hits]
    raise UserError("no such file or folder", where=argument, do="check the path", kind="no-sources")


def _take_folder(folder: Path, found: Found) -> None:
    files = sorted(Path(root) / name for root, _, names in os.walk(folder) for name in names)
    files = [file for file in files if file.is_file()]
    videos = [file for file in files if file.suffix.lower() in MEDIA_EXTENSIONS]
    if not videos:
        what = f"none of the {len(files)} files in the folder is a video" if files else "the folder is empty"
        raise UserError(what, where=folder, do=f"known endings: {' '.join(sorted(MEDIA_EXTENSIONS))}", kind="no-sources")
    found.videos += [_absolute(video) for video in videos]
    found.passed_over += [_absolute(file) for file in sorted(set(files) - set(videos))]


def _take_list(path: Path, found: Found) -> None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the list cannot be read: {error}", where=path, do="give a UTF-8 text file", kind="no-sources"
        ) from error
    named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not named:
        raise UserError("the list names no video", where=path, do="write one path a line", kind="no-sources")
    # a listed file that is not there is no reason to stop the others: reading it fails, and that becomes its failure row
    found.videos += [_absolute(Path(line) if os.path.isabs(line) else path.parent / line) for line in named]
