"""Expand what the user names (videos, folders, globs, list files, URLs) to one sorted list of videos."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass, field, replace

from uniavgen.ingest.config import SourceConfig
from uniavgen.ingest.io.list_files import (
    ListLine,
    find_listed,
    is_comment,
    local_listed,
    parse_list,
    read_list,
)
from uniavgen.ingest.io.local_files import list_local
from uniavgen.ingest.io.own_folders import look_again, own_folder_of
from uniavgen.ingest.io.remote_files import check_allowed, list_remote, read_remote_list, remote_entries
from uniavgen.ingest.io.uris import Entry, Listing
from uniavgen.shards.errors import UserError, printable
from uniavgen.shards.uris import local_path, protocol_of, uri_of


@dataclass
class SourceList:
    """The videos, sorted by URI and each once; `passed_over` are other files, with the reason."""

    entries: list[Entry] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)

    @property
    def videos(self) -> list[str]:
        """URIs of the videos."""
        return [entry.uri for entry in self.entries]


def find_sources(arguments: list[str], config: SourceConfig | None = None) -> SourceList:
    """Expand files, folders (recursive), globs, `.txt` list files and URLs of all of these.

    A list file holds a path or URL a line, relative to the list; lines that start with # are comments, unless
    a file has that name. A line that names nothing becomes a failure of that line alone. What this program
    wrote (a corpus, a training run) is passed over. A `file://` URI is a percent-encoded path, as tables
    store names that are not UTF-8. A file named directly is taken whatever its name; a folder or glob gives
    files with a video's extension, and no link that leads out of it.

    Raises UserError (no-sources, http-off, bad-url, unreachable) for a path that does not exist, a pattern
    without match, a folder or list without videos, a web address without `allow_http`, or no argument at all.
    """
    config = config or SourceConfig()
    if not arguments:
        raise UserError(
            "no source named", hint="name videos, folders, globs or a list file", kind="no-sources"
        )
    look_again()
    entries: dict[str, Entry] = {}
    passed_over: dict[str, str] = {}
    for argument in arguments:
        # a file may have a name that looks like a URL
        path = argument if os.path.lexists(argument) else local_path(argument)
        listing = list_remote(argument, config) if path is None else list_local(path)
        for name in listing.lists:
            listed = _listed(name, config, remote=path is None)
            listing.entries += listed.entries
            listing.passed_over |= listed.passed_over
        entries.update((entry.uri, entry) for entry in listing.entries)
        passed_over |= listing.passed_over
    if not entries:
        uri, reason = next(iter(passed_over.items()))
        raise UserError(
            f"no video is left: it is {reason}, which is never an input",
            where=uri,
            hint="name the folder of the raw videos",
            kind="no-sources",
        )
    return SourceList(
        [entries[uri] for uri in sorted(entries)],
        {uri: reason for uri, reason in sorted(passed_over.items()) if uri not in entries},
    )


def _listed(name: str, config: SourceConfig, remote: bool) -> Listing:
    """The videos of a list file. A remote list may only name files of its own store."""
    name = name if remote else os.path.abspath(name)
    folder = None if remote else os.path.dirname(name)
    lines = parse_list(read_remote_list(name)) if remote else read_list(name)
    named = [line for line in lines if not is_comment(line, folder)]
    if not named:
        raise UserError(
            "the list names no video", where=printable(name), hint="write one path a line", kind="no-sources"
        )
    if folder is None:
        return Listing(_remote_lines(named, name, config))
    found = {line.number: find_listed(line, folder) for line in named}
    urls = [line for line in named if not line.problem and not found[line.number] and _is_url(line)]
    if not urls and not any(found.values()) and any("\0" in line.text for line in named):
        raise UserError(
            "the list is not a text file",
            where=printable(name),
            hint="a video needs another extension than .txt",
            kind="no-sources",
        )
    listing = Listing(_listed_urls(urls, name, config))
    for line in named:
        path = found[line.number]
        if path and (own := own_folder_of(path)):
            listing.passed_over[uri_of(path)] = own
        elif line not in urls:
            # a listed file that does not exist stops nobody: reading it fails and becomes its failure row
            listing.entries.append(local_listed(line, folder, name))
    return listing


def _listed_urls(lines: list[ListLine], name: str, config: SourceConfig) -> list[Entry]:
    """The entries of URLs in a local list; one that no store can read fails alone.

    Raises UserError (http-off) for a web address without `allow_http`.
    """
    entries, good = [], []
    for line in lines:
        try:
            check_allowed(line.text.strip(), config)
            good.append(line)
        except UserError as error:
            if error.kind != "bad-url":
                raise
            entries.append(Entry(printable(line.text.strip()), problem=str(error), origin=line.origin(name)))
    return entries + _with_origins(good, remote_entries([line.text.strip() for line in good]), name)


def _is_url(line: ListLine) -> bool:
    return local_path(line.text.strip()) is None


def _remote_lines(lines: list[ListLine], name: str, config: SourceConfig) -> list[Entry]:
    """The entries of a remote list. Raises UserError (bad-url) if a line leads out of its store."""
    entries, urls = [], {}
    for line in lines:
        if line.problem:
            entries.append(line.entry(f"{name}: line {line.number}", name))
            continue
        text = printable(line.text.strip())
        url = text if protocol_of(text) else posixpath.join(posixpath.dirname(name), text)
        if protocol_of(url) != protocol_of(name) or ".." in url.split("/"):
            raise UserError(
                f"a remote list must not name {url}",
                where=name,
                hint="name files of the same store",
                kind="bad-url",
            )
        check_allowed(url, config)
        urls[url] = line
    return entries + _with_origins(list(urls.values()), remote_entries(list(urls)), name)


def _with_origins(lines: list[ListLine], entries: list[Entry], where: str) -> list[Entry]:
    return [replace(entry, origin=line.origin(where)) for line, entry in zip(lines, entries, strict=True)]
