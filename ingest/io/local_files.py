"""Local videos: find them in folders and by patterns, check and identify a file."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from uniavgen.ingest.io.own_folders import own_folder_of, prune_own_folders
from uniavgen.ingest.io.uris import Entry, Listing, is_video_name, no_videos
from uniavgen.shards.errors import UserError, printable
from uniavgen.shards.uris import uri_of


def list_local(path: str) -> Listing:
    """What a path names: a file, a list file, a folder (recursive) or, where no file has this name, a glob
    pattern.

    A file that is named directly is taken whatever its extension. What this program wrote is passed over: a
    corpus is never its own input. Raises UserError (no-sources).
    """
    if not os.path.lexists(path) and glob.has_magic(path):
        return _list_pattern(path)
    if not os.path.exists(path):
        raise UserError(
            "no such file or folder", where=printable(path), hint="check the path", kind="no-sources"
        )
    if own := own_folder_of(path):
        return Listing(passed_over={uri_of(path): own})
    if os.path.isdir(path):
        return _list_folder(path)
    if path.lower().endswith(".txt") and os.path.isfile(path):
        return Listing(lists=[path])
    return Listing([local_entry(path)])


def local_entry(path: str) -> Entry:
    """A local file with its size and modification time; without them where the file cannot be examined."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return Entry(uri_of(path) if "\0" not in path else path)
    return Entry(uri_of(path), f"{status.st_size}-{status.st_mtime_ns}", status.st_size)


def check_regular(path: str) -> None:
    """Raise UserError (unreadable, not-a-file, empty) unless the path is a regular file with content."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot be read: {reason}", where=printable(path), hint="check the file", kind="unreadable"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(
            f"it is a {_file_type(status.st_mode)}, not a file", where=printable(path), kind="not-a-file"
        )
    if not status.st_size:
        raise UserError(
            "the file is empty (zero bytes)", where=printable(path), hint="fetch it again", kind="empty"
        )


def content_id(path: str) -> str:
    """The source id: the first 32 hex digits of the SHA-256 of the content.

    Raises UserError if it cannot be read.
    """
    check_regular(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}",
            where=printable(path),
            hint="check the file",
            kind="unreadable",
        ) from error


def file_statuses(folder: Path, pattern: str) -> dict[Path, os.stat_result]:
    """Files of a folder with their status (a link's own). Other processes may remove a file meanwhile."""
    statuses = {}
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            statuses[path] = path.lstat()
    return statuses


def _list_pattern(pattern: str) -> Listing:
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise UserError(
            "no file matches", where=printable(pattern), hint="check the pattern", kind="no-sources"
        )
    listing = Listing()
    root = pattern[: min(pattern.find(mark) for mark in "*?[" if mark in pattern)].rpartition("/")[0]
    for match in matches:
        if own := own_folder_of(match):
            listing.passed_over[uri_of(match)] = own
        elif os.path.isdir(match) and not os.path.islink(match):
            if "**" not in pattern:  # `**` matches a folder's files itself
                inside = _list_folder(match)
                listing.entries += inside.entries
                listing.passed_over |= inside.passed_over
        elif match.lower().endswith(".txt"):
            listing.lists.append(match)
        else:
            _add_file(match, root or ("/" if pattern.startswith("/") else "."), listing, any_name=True)
    return listing


def _list_folder(folder: str) -> Listing:
    listing, files = Listing(), 0
    own: dict[str, str] = {}

    def on_error(error: OSError) -> None:
        if error.filename == folder:
            raise UserError(
                f"the folder cannot be listed: {error.strerror}",
                where=printable(folder),
                hint="check its permissions",
                kind="no-sources",
            )
        listing.passed_over[uri_of(error.filename)] = f"a folder that cannot be listed: {error.strerror}"

    for root, folders, names in os.walk(folder, onerror=on_error):
        own |= prune_own_folders(root, folders, names, top=root == folder)
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(root, name)))]:
            files += 1
            _add_file(os.path.join(root, name), folder, listing, any_name=False)
    listing.passed_over |= {uri_of(path): kind for path, kind in own.items()}
    if not listing.entries and not own:
        raise no_videos(files, printable(folder))
    return listing


def _add_file(path: str, root: str, listing: Listing, any_name: bool) -> None:
    """Add one file found under `root` to the listing, or the reason why it is passed over."""
    target = os.path.realpath(path)
    if os.path.islink(path) or any_name:
        # a parent folder may be a link as well, so the whole path is compared
        if os.path.commonpath([target, os.path.realpath(root)]) != os.path.realpath(root):
            listing.passed_over[uri_of(path)] = "a link that leads out of the folder"
            return
        if os.path.isdir(target):
            listing.passed_over[uri_of(path)] = "a link to a folder"
            return
        if own := own_folder_of(path):
            listing.passed_over[uri_of(path)] = own
            return
    if not os.path.isfile(path):
        reason = "a broken link" if os.path.islink(path) else f"a {_file_type(os.lstat(path).st_mode)}"
        listing.passed_over[uri_of(path)] = reason
    elif not any_name and not is_video_name(path):
        listing.passed_over[uri_of(path)] = "not a video by its name"
    else:
        listing.entries.append(local_entry(path))


def _file_type(mode: int) -> str:
    types = (
        (stat.S_ISDIR, "folder"),
        (stat.S_ISFIFO, "pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISREG, "file"),
    )
    return next((name for test, name in types if test(mode)), "device")
