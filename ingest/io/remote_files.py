"""Remote videos: find and download them, from any fsspec store and, for users who allow it, over http(s).

Over http(s) redirects are followed here, so that none leads to another protocol, and content encodings are
not decoded, so that a small response cannot expand to a large file.
"""

from __future__ import annotations

import asyncio
import glob
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import IO, Any
from urllib.parse import urljoin

from uniavgen.ingest.config import SourceConfig
from uniavgen.ingest.io.own_folders import CORPUS
from uniavgen.ingest.io.uris import Entry, Listing, is_video_name, no_videos
from uniavgen.shards.errors import UserError
from uniavgen.shards.uris import protocol_of

HTTP = ("http", "https")
"""Protocols that are refused unless `sources.allow_http` is set."""

LISTING_THREADS = 16
"""Remote files of a list that are asked for their size at the same time. Heuristic, as are the constants
below."""
STORE_BLOCK = 1 << 22
HTTP_BLOCK = 1 << 18
"""Bytes of one read."""
RESPONSE_SECONDS = 20.0
"""Longest wait for a connection and for the next bytes over http(s)."""
MAX_REDIRECTS = 5

_STAMPS = ("etag", "md5", "contentmd5", "lastmodified", "mtime", "updated", "modified", "created")
"""Names that stores give to what changes with the content, best first (compared in lower case, letters
only)."""


def check_allowed(uri: str, config: SourceConfig) -> None:
    """Raise UserError for a URL that is not read: http-off for a web address without `allow_http`, else
    bad-url.
    """
    if protocol_of(uri) not in HTTP:
        _filesystem(uri)
    elif not config.allow_http:
        hint = "fetch it first, or add --set ingest.sources.allow_http=true"
        raise UserError("web addresses are not read unless allowed", where=uri, hint=hint, kind="http-off")


def list_remote(uri: str, config: SourceConfig) -> Listing:
    """What a URL names: a file, a list file, a folder (recursive) or a glob pattern; over http(s) only a
    file.
    """
    check_allowed(uri, config)
    if protocol_of(uri) in HTTP:
        return Listing(remote_entries([uri]))
    files = _matches(uri)
    if [entry.uri for entry in files] == [uri]:
        return Listing(lists=[uri]) if uri.lower().endswith(".txt") else Listing(files)
    corpora = {
        name.removesuffix("corpus.json") for entry in files if (name := entry.uri).endswith("/corpus.json")
    }
    outside = [entry for entry in files if not entry.uri.startswith(tuple(corpora))]
    videos = [entry for entry in outside if is_video_name(entry.uri)]
    if not videos and not corpora:
        raise no_videos(len(files), uri)
    others = {entry.uri: "not a video by its name" for entry in set(outside) - set(videos)}
    return Listing(videos, passed_over=others | dict.fromkeys(corpora, CORPUS))


def remote_entries(uris: list[str]) -> list[Entry]:
    """Entries of remote files, asked for in parallel.

    One without an answer has no stamp; reading it says why.
    """

    def entry(uri: str) -> Entry:
        try:
            if protocol_of(uri) in HTTP:
                return _http_entry(uri)
            return next(iter(_store_entries(uri, "info")), Entry(uri))
        except UserError:
            return Entry(uri)

    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        return list(pool.map(entry, uris))


def read_remote_list(uri: str) -> bytes:
    """The content of a list file in a store. Raises UserError (no-sources)."""
    store, path = _filesystem(uri)
    try:
        content: bytes = store.cat_file(path)
        return content
    except Exception as error:  # every store has its own errors
        raise UserError(f"the list cannot be read: {error}", where=uri, kind="no-sources") from error


def download(uri: str, target: IO[bytes], seconds: float, on_bytes: Callable[[int], None]) -> int:
    """Write the file behind `uri` into `target`; return its size in bytes.

    `on_bytes(size so far)` may raise to stop it.

    Raises UserError: `unreadable` where there is no such file or the response is not 200, `unreachable` for a
    connection that fails or ends early, over http(s) also `timeout` after `seconds` and `bad-url` for a
    redirect to another protocol.
    """
    if protocol_of(uri) in HTTP:
        return _http_download(uri, target, seconds, on_bytes)
    size = 0
    for block in _store_blocks(uri):
        size += len(block)
        on_bytes(size)
        target.write(block)
    return size


def _filesystem(uri: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises UserError (bad-url) for chains and unknown protocols.
    """
    import fsspec

    if "::" in uri:
        raise UserError(
            "chained URLs are not supported", where=uri, hint="name the file itself", kind="bad-url"
        )
    try:
        store_and_path: tuple[Any, str] = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{protocol_of(uri)}:// cannot be read here: {error}", where=uri, kind="bad-url"
        ) from error
    return store_and_path


def _matches(uri: str) -> list[Entry]:
    """The file of this name, else the files below it, else those that match it as a pattern."""
    try:
        files = _store_entries(uri, "info")
    except UserError as error:
        if error.kind != "unreadable":
            raise
        files = []
    files = files or _store_entries(uri, "glob" if glob.has_magic(uri) else "find")
    if not files:
        raise UserError("no such file or folder", where=uri, hint="check the address", kind="no-sources")
    return files


def _store_entries(uri: str, method: str) -> list[Entry]:
    """Files by the store's `find` (a folder), `glob` (a pattern) or `info` (the file itself; none if it is a
    folder).

    Raises UserError where the store cannot be reached or has no such file (`unreachable`, `unreadable`).
    """
    store, path = _filesystem(uri)
    try:
        if method == "info":
            infos: Iterable[dict[str, Any]] = [store.info(path)]
        else:
            infos = getattr(store, method)(path, detail=True).values()
        return [_store_entry(store, info) for info in infos if info.get("type") != "directory"]
    except FileNotFoundError as error:
        raise UserError("no such file", where=uri, hint="check the address", kind="unreadable") from error
    except Exception as error:  # every store has its own errors
        raise UserError(f"the store says: {error}"[:300], where=uri, kind="unreachable") from error


def _store_entry(store: Any, info: dict[str, Any]) -> Entry:
    by_name = {re.sub("[^a-z]", "", name.lower()): value for name, value in info.items()}
    stamp = next((str(by_name[name]) for name in _STAMPS if by_name.get(name)), "")
    size = info.get("size")
    return Entry(store.unstrip_protocol(info["name"]), f"{size}-{stamp}" if stamp else "", size)


def _store_blocks(uri: str) -> Iterable[bytes]:
    store, path = _filesystem(uri)
    try:
        with store.open(path, "rb", block_size=STORE_BLOCK) as source:
            while block := source.read(STORE_BLOCK):
                yield block
    except FileNotFoundError as error:
        raise UserError("no such file", where=uri, hint="check the address", kind="unreadable") from error
    except Exception as error:  # every store has its own errors
        raise UserError(
            f"download failed: {error}"[:300], where=uri, hint="run again", kind="unreachable"
        ) from error


def _http_entry(url: str) -> Entry:
    """Size and stamp (ETag, else Last-Modified) by a HEAD request; neither where the server does not say."""

    async def head() -> Entry:
        async with _http_response("HEAD", url, RESPONSE_SECONDS) as response:
            stamp = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            size = response.content_length
            return Entry(url, f"{size}-{stamp}" if stamp else "", size)

    return _run(head(), url)


def _http_download(url: str, target: IO[bytes], seconds: float, on_bytes: Callable[[int], None]) -> int:
    async def get() -> int:
        size = 0
        async with _http_response("GET", url, seconds) as response:
            async for block in response.content.iter_chunked(HTTP_BLOCK):
                size += len(block)
                on_bytes(size)
                target.write(block)
        return size

    return _run(get(), url)


@asynccontextmanager
async def _http_response(method: str, url: str, seconds: float) -> Any:
    """The response with status 200, after at most `MAX_REDIRECTS` redirects within http(s), never from https
    to http.
    """
    import aiohttp

    limits = aiohttp.ClientTimeout(total=seconds, sock_connect=RESPONSE_SECONDS, sock_read=RESPONSE_SECONDS)
    plain = {"Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(timeout=limits, headers=plain, auto_decompress=False) as session:
        address = url
        for _ in range(MAX_REDIRECTS + 1):
            async with session.request(method, address, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                    target = urljoin(address, response.headers["Location"])
                    if protocol_of(target) not in {"https", protocol_of(address)}:
                        raise UserError(f"a redirect to {target} is not followed", where=url, kind="bad-url")
                    address = target
                    continue
                if response.status != 200:
                    raise UserError(
                        f"the server answers {response.status} {response.reason}",
                        where=url,
                        kind="unreadable",
                    )
                yield response
                return
    raise UserError(f"more than {MAX_REDIRECTS} redirects", where=url, kind="bad-url")


def _run(work: Any, url: str) -> Any:
    import aiohttp

    try:
        return asyncio.run(work)
    except TimeoutError as error:
        raise UserError(
            "the download took too long", where=url, hint="raise sources.fetch_seconds", kind="timeout"
        ) from error
    except (aiohttp.ClientError, ValueError) as error:
        raise UserError(
            f"the server cannot be reached: {error}"[:300], where=url, kind="unreachable"
        ) from error
