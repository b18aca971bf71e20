"""Which files an ingest is about: what the user names (videos, folders, globs, list files, URLs) becomes one sorted list.

Goes in: the arguments. Comes out: `Found`, every video once, and every file that was passed over with the reason.
"""

from __future__ import annotations

import glob
import hashlib
import os
import posixpath
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from uniavgen.ingest.config import MEDIA_EXTENSIONS, SourceConfig
from uniavgen.ingest.io.uris import (
    WEB,
    Entry,
    check_regular,
    filesystem,
    kind_of_file,
    local_entry,
    local_path,
    printable,
    protocol_of,
    remote_files,
    uri_of,
)
from uniavgen.shards.errors import UserError

LISTERS = 16
"""Remote files of a list that are asked for their size at once (our choice)."""


@dataclass
class SourceList:
    """The videos, in order of their uri and each once; `passed_over` are other files, with the reason."""

    entries: list[Entry] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)

    @property
    def videos(self) -> list[str]:
        """The videos' uris."""
        return [entry.uri for entry in self.entries]


def find_sources(arguments: list[str], config: SourceConfig | None = None) -> SourceList:
    """Expand files, folders (recursive), globs, `.txt` list files (a path or URL a line, relative to the list; # comments)
    and URLs of all of these. A `file://` URI is a percent-encoded path, as tables write names that are no UTF-8.

    A file named outright is taken whatever its name; a folder or glob gives files with a video's extension, and no link
    that leads out of it. Raises UserError (no-sources, http-off, bad-url, unreachable) for a path that is not there, a
    pattern without match, a folder or list without videos, a web address without `allow_http`, or nothing named at all.
    """
    config = config or SourceConfig()
    if not arguments:
        raise UserError(
            "no source named", hint="give videos, folders, globs or a list file", kind="no-sources"
        )
    found = SourceList()
    for argument in arguments:
        if protocol_of(argument) and not os.path.lexists(argument):
            _take_url(argument, found, config)
        else:
            _take_path(argument, found, config)
    found.entries = sorted(
        {entry.uri: entry for entry in found.entries}.values(), key=lambda entry: entry.uri
    )
    taken = set(found.videos)
    found.passed_over = {uri: why for uri, why in sorted(found.passed_over.items()) if uri not in taken}
    return found


def content_id(path: str) -> str:
    """Identity of a source: the first 32 hex digits of its content's SHA-256. Raises UserError if it cannot be read."""
    check_regular(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        where = printable(path)
        raise UserError(
            f"cannot be read: {error.strerror}", where=where, hint="check the file", kind="unreadable"
        ) from error


def check_allowed(uri: str, config: SourceConfig) -> None:
    """Raise UserError for a URL that is not read: http-off for a web address that nobody allowed, else bad-url."""
    if protocol_of(uri) not in WEB:
        filesystem(uri)
    elif not config.allow_http:
        hint = "fetch it first, or add --set ingest.sources.allow_http=true"
        raise UserError("web addresses are not read unless allowed", where=uri, hint=hint, kind="http-off")


def _take_path(argument: str, found: SourceList, config: SourceConfig) -> None:
    path = local_path(argument) or argument
    if not os.path.lexists(path) and glob.has_magic(path):
        _take_glob(path, found, config)
    elif not os.path.exists(path):
        raise UserError(
            "no such file or folder", where=printable(argument), hint="check the path", kind="no-sources"
        )
    elif os.path.isdir(path):
        _take_folder(path, found)
    elif path.lower().endswith(".txt") and os.path.isfile(path):
        _take_list(_read_list(path), argument, found, config)
    else:
        found.entries.append(local_entry(path))


def _take_glob(pattern: str, found: SourceList, config: SourceConfig) -> None:
    hits = sorted(glob.glob(pattern, recursive=True))
    if not hits:
        raise UserError(
            "no file matches", where=printable(pattern), hint="check the pattern", kind="no-sources"
        )
    root = pattern[: min(pattern.find(mark) for mark in "*?[" if mark in pattern)].rpartition("/")[0]
    for hit in hits:
        if os.path.isdir(hit) and not os.path.islink(hit):
            if "**" not in pattern:  # `**` names a folder's files itself
                _take_folder(hit, found)
        elif hit.lower().endswith(".txt"):
            _take_list(_read_list(hit), hit, found, config)
        else:
            _take_file(hit, root or ("/" if pattern.startswith("/") else "."), found)


def _take_folder(folder: str, found: SourceList) -> None:
    before, files = len(found.entries), 0

    def unread(error: OSError) -> None:
        if error.filename == folder:
            where = printable(folder)
            raise UserError(
                f"the folder cannot be listed: {error.strerror}",
                where=where,
                hint="check its rights",
                kind="no-sources",
            )
        found.passed_over[uri_of(error.filename)] = f"a folder that cannot be listed: {error.strerror}"

    for root, folders, names in os.walk(folder, onerror=unread):
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(root, name)))]:
            files += 1
            _take_file(os.path.join(root, name), folder, found, any_name=False)
    if len(found.entries) == before:
        raise _no_videos(files, printable(folder))


def _take_file(path: str, root: str, found: SourceList, any_name: bool = True) -> None:
    """Take one file that was found under `root`, or say why not."""
    is_video = any_name or os.path.splitext(path)[1].lower() in MEDIA_EXTENSIONS
    target = os.path.realpath(path)
    if os.path.islink(path) or any_name:
        # a folder on the way may be a link as well, so the whole path is compared
        if os.path.commonpath([target, os.path.realpath(root)]) != os.path.realpath(root):
            found.passed_over[uri_of(path)] = "a link that leads out of the folder"
            return
        if os.path.isdir(target):
            found.passed_over[uri_of(path)] = "a link to a folder"
            return
    if not os.path.isfile(path):
        mode = os.lstat(path).st_mode
        found.passed_over[uri_of(path)] = (
            "a link to nothing" if os.path.islink(path) else f"a {kind_of_file(mode)}"
        )
    elif not is_video:
        found.passed_over[uri_of(path)] = "no video by its name"
    else:
        found.entries.append(local_entry(path))


def _take_url(uri: str, found: SourceList, config: SourceConfig) -> None:
    if protocol_of(uri) == "file":
        return _take_path(uri, found, config)
    check_allowed(uri, config)
    if protocol_of(uri) in WEB:
        # the web knows no folders
        found.entries += _entries([uri])
        return None
    files = _remote_matches(uri)
    if [entry.uri for entry in files] == [uri] and uri.lower().endswith(".txt"):
        return _take_list(_read_remote_list(uri), uri, found, config)
    videos = (
        files
        if len(files) == 1 and files[0].uri == uri
        else [entry for entry in files if _is_video(entry.uri)]
    )
    if not videos:
        raise _no_videos(len(files), uri)
    found.entries += videos
    for entry in set(files) - set(videos):
        found.passed_over[entry.uri] = "no video by its name"
    return None


def _remote_matches(uri: str) -> list[Entry]:
    """The file of this name, else the files below it, else those that match it as a pattern."""
    try:
        files = remote_files(uri, "info")
    except UserError as error:
        if error.kind != "unreadable":
            raise
        files = []
    files = files or remote_files(uri, "glob" if glob.has_magic(uri) else "find")
    if not files:
        raise UserError("no such file or folder", where=uri, hint="check the address", kind="no-sources")
    return files


def _take_list(lines: list[str], name: str, found: SourceList, config: SourceConfig) -> None:
    """Take what a list file names. A remote list may only name files of its own store."""
    named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not named:
        raise UserError(
            "the list names no video", where=printable(name), hint="write one path a line", kind="no-sources"
        )
    remote = protocol_of(name) not in ("", "file")
    base = local_path(name) or name
    urls = []
    for line in named:
        if remote and not protocol_of(line):
            line = posixpath.join(posixpath.dirname(base), line)
        protocol = protocol_of(line)
        if remote and (protocol != protocol_of(name) or ".." in line.split("/")):
            raise UserError(
                f"a remote list must not name {line}",
                where=name,
                hint="name files of its store",
                kind="bad-url",
            )
        if protocol and protocol != "file":
            check_allowed(line, config)
            urls.append(line)
        else:
            path = local_path(line) or line
            # a listed file that is not there stops nobody: reading it fails, and that becomes its failure row
            found.entries.append(local_entry(os.path.join(os.path.dirname(base), path)))
    found.entries += _entries(urls)


def _entries(urls: list[str]) -> list[Entry]:
    """Entries of remote files, asked for together; one that does not answer stays without stamp, reading it says why."""

    def ask(url: str) -> Entry:
        from uniavgen.ingest.io.web import web_entry

        try:
            return (
                web_entry(url)
                if protocol_of(url) in WEB
                else next(iter(remote_files(url, "info")), Entry(url))
            )
        except UserError:
            return Entry(url)

    with ThreadPoolExecutor(LISTERS) as pool:
        return list(pool.map(ask, urls))


def _read_list(path: str) -> list[str]:
    try:
        # names of any bytes may be listed as they are on disk
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        where = printable(path)
        raise UserError(
            f"the list cannot be read: {error.strerror}", where=where, hint="check it", kind="no-sources"
        ) from error


def _read_remote_list(uri: str) -> list[str]:
    store, path = filesystem(uri)
    try:
        text: str = store.cat_file(path).decode("utf-8")
    except Exception as error:  # every store has its own errors
        raise UserError(f"the list cannot be read: {error}", where=uri, kind="no-sources") from error
    return text.split("\n")


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in MEDIA_EXTENSIONS


def _no_videos(files: int, where: str) -> UserError:
    what = f"none of the {files} files in the folder is a video" if files else "the folder is empty"
    return UserError(
        what, where=where, hint=f"known endings: {' '.join(sorted(MEDIA_EXTENSIONS))}", kind="no-sources"
    )
