"""Files that are hashed while they are written, so that nothing is read back and what is told of a file is what was meant.

In: a path and a function that writes into an open file, such as `torch.save`. Out: the SHA-256 of what it wrote, once that
is on the disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PIECE = 2**24
"""Bytes that are hashed and written side by side: few enough to stay in a processor's cache."""
SMALL = 2**16
"""Bytes that are hashed sooner than another thread takes them over."""


def write_hashed(path: Path, write: Callable[[HashedFile], Any]) -> str:
    """Let `write` fill a new file: the SHA-256 of its bytes as hexadecimal, when they are on the disk.

    Raises OSError where the disk does not take them.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="hashing") as hashing, HashedFile(path, hashing) as file:
        write(file)
        return file.finish()


class HashedFile:
    """A new file for writing. While the disk takes a piece, another thread hashes it.

    An error of the disk is kept until `finish`: PyTorch's writer, which is no Python, would tell of it in words of its own.
    """

    def __init__(self, path: Path, hashing: Executor) -> None:
        self._file, self._hashing, self._digest = path.open("wb"), hashing, hashlib.sha256()
        self._error: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:
            # what is buffered is tried once more; `finish` has told of it, or another error is on its way
            if kind is None:
                raise

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append bytes; the number of them. They may change once this returns."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PIECE):
            self._write_piece(view[at : at + PIECE])
        return len(view)

    def flush(self) -> None:
        """Nothing: `finish` does."""

    def finish(self) -> str:
        """The digest, once all bytes are on the disk. Raises OSError where they are not."""
        if self._error is not None:
            raise self._error
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def _write_piece(self, piece: memoryview) -> None:
        if self._error is not None:
            return
        hashed = self._hashing.submit(self._digest.update, piece) if len(piece) > SMALL else None
        try:
            self._file.write(piece)
        except OSError as error:
            self._error = error
        finally:
            if hashed:
                hashed.result()  # the piece is the caller's again when this returns
            else:
                self._digest.update(piece)
