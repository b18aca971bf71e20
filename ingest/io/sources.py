"""Expand what the user names (videos, folders, globs, list files, URLs) to one sorted list of videos."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass, field

from uniavgen.ingest.config import SourceConfig
from uniavgen.ingest.io.local_files import list_local, local_entry, read_list
from uniavgen.ingest.io.remote_files import check_allowed, list_remote, read_remote_list, remote_entries
from uniavgen.ingest.io.uris import Entry
from uniavgen.shards.errors import UserError, printable
from uniavgen.shards.uris import local_path, protocol_of


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

    A list file holds a path or URL a line, relative to the list; lines that start with # are comments. A
    `file://` URI is a percent-encoded path, as tables store names that are not UTF-8. A file named directly
    is taken whatever its name; a folder or glob gives files with a video's extension, and no link that leads
    out of it.

    Raises UserError (no-sources, http-off, bad-url, unreachable) for a path that does not exist, a pattern
    without match, a folder or list without videos, a web address without `allow_http`, or no argument at all.
    """
    config = config or SourceConfig()
    if not arguments:
        raise UserError(
            "no source named", hint="name videos, folders, globs or a list file", kind="no-sources"
        )
    entries: dict[str, Entry] = {}
    passed_over: dict[str, str] = {}
    for argument in arguments:
        # a file may have a name that looks like a URL
        path = argument if os.path.lexists(argument) else local_path(argument)
        listing = list_remote(argument, config) if path is None else list_local(path)
        for name in listing.lists:
            listing.entries += _listed(name, config, remote=path is None)
        entries.update((entry.uri, entry) for entry in listing.entries)
        passed_over |= listing.passed_over
    return SourceList(
        [entries[uri] for uri in sorted(entries)],
        {uri: reason for uri, reason in sorted(passed_over.items()) if uri not in entries},
    )


def _listed(name: str, config: SourceConfig, remote: bool) -> list[Entry]:
    """The videos of a list file. A remote list may only name files of its own store."""
    lines = read_remote_list(name) if remote else read_list(name)
    named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not named:
        raise UserError(
            "the list names no video", where=printable(name), hint="write one path a line", kind="no-sources"
        )
    local, urls = [], []
    for line in named:
        if remote:
            url = line if protocol_of(line) else posixpath.join(posixpath.dirname(name), line)
            if protocol_of(url) != protocol_of(name) or ".." in url.split("/"):
                raise UserError(
                    f"a remote list must not name {url}",
                    where=name,
                    hint="name files of the same store",
                    kind="bad-url",
                )
            urls.append(url)
        elif (path := local_path(line)) is None:
            urls.append(line)
        else:
            # a listed file that does not exist stops nobody: reading it fails and becomes its failure row
            local.append(local_entry(os.path.join(os.path.dirname(name), path)))
    for url in urls:
        check_allowed(url, config)
    return local + remote_entries(urls)
