"""Videos at http(s) addresses, for users who allowed it: no other protocol, bounded in size and time.

Goes in: a URL. Comes out: its size and stamp, or the file's bytes in a local file. Redirects are followed by hand, so that
none leads to another protocol; content encodings are not undone, so that a small answer cannot unpack to a large one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import IO, Any
from urllib.parse import urljoin

from uniavgen.ingest.io.uris import Entry, protocol_of
from uniavgen.shards.errors import UserError

MAX_REDIRECTS = 5
ANSWER_SECONDS = 20.0
"""Longest wait for a connection and for the next bytes (our choice)."""
BLOCK = 1 << 18


def web_entry(url: str) -> Entry:
    """Size and stamp (entity tag, else time of change) by a HEAD request; neither where the server does not say."""

    async def ask() -> Entry:
        async with _answer("HEAD", url, ANSWER_SECONDS) as answer:
            stamp = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            size = answer.content_length
            return Entry(url, f"{size}-{stamp}" if stamp else "", size)

    return _run(ask(), url)


def web_fetch(url: str, target: IO[bytes], seconds: float, take: Callable[[int], None]) -> int:
    """Write the file behind `url` into `target`, return its size in bytes. `take` hears the bytes so far and may raise.

    Raises UserError: `timeout` after `seconds` in all, `unreadable` for an answer other than 200, `unreachable` for a
    connection that fails or ends early, `bad-url` for a redirect to another protocol.
    """

    async def fetch() -> int:
        size = 0
        async with _answer("GET", url, seconds) as answer:
            async for block in answer.content.iter_chunked(BLOCK):
                size += len(block)
                take(size)
                target.write(block)
        return size

    return _run(fetch(), url)


@asynccontextmanager
async def _answer(method: str, url: str, seconds: float) -> Any:
    """The answer with status 200, after at most `MAX_REDIRECTS` redirects within http(s), never from https to http."""
    import aiohttp

    limits = aiohttp.ClientTimeout(total=seconds, sock_connect=ANSWER_SECONDS, sock_read=ANSWER_SECONDS)
    plain = {"Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(timeout=limits, headers=plain, auto_decompress=False) as session:
        at = url
        for _ in range(MAX_REDIRECTS + 1):
            async with session.request(method, at, allow_redirects=False) as answer:
                if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                    after = urljoin(at, answer.headers["Location"])
                    if protocol_of(after) not in {"https", protocol_of(at)}:
                        raise UserError(f"a redirect to {after} is not followed", where=url, kind="bad-url")
                    at = after
                    continue
                if answer.status != 200:
                    raise UserError(
                        f"the server answers {answer.status} {answer.reason}", where=url, kind="unreadable"
                    )
                yield answer
                return
    raise UserError(f"more than {MAX_REDIRECTS} redirects", where=url, kind="bad-url")


def _run(work: Any, url: str) -> Any:
    import aiohttp

    try:
        return asyncio.run(work)
    except TimeoutError as error:
        raise UserError(
            "fetching took too long", where=url, hint="raise sources.fetch_seconds", kind="timeout"
        ) from error
    except (aiohttp.ClientError, ValueError) as error:
        raise UserError(
            f"the server cannot be reached: {error}"[:300], where=url, kind="unreachable"
        ) from error
