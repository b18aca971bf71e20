"""The store: retries of reads, writes and removals."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest
from made_shards import sample_named, write_tars

from uniavgen.shards import store as store_module
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.store import Store


def test_reads_are_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tars(tmp_path, [[sample_named(key) for key in "abc"]])
    monkeypatch.setattr(store_module, "WAITS_S", (0.01, 0.01))
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/flaky/shards", recursive=True)
    real, asked = type(store).cat_file, []

    def failing(self: object, path: str, **span: int) -> bytes:
        asked.append(path)
        if len(asked) % 3:  # fails twice, then answers
            raise OSError("503 Slow Down")
        content: bytes = real(self, path, **span)
        return content

    try:
        monkeypatch.setattr(type(store), "cat_file", failing)
        stream = SampleStream("memory://flaky/shards")
        assert len({sample.key for _, sample in islice(stream.read(), 3)}) == 3
        assert not stream.error_budget.damaged
        monkeypatch.setattr(store_module, "WAITS_S", ())
        with pytest.raises(UserError, match="store cannot be read: OSError 503 Slow Down"):
            SampleStream("memory://flaky/shards")
    finally:
        store.rm("/flaky", recursive=True)


def test_writes_and_removals_are_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WAITS_S", (0.01, 0.01))
    store = fsspec.filesystem("memory")
    real, asked = {name: getattr(type(store), name) for name in ("put_file", "rm_file")}, list[str]()

    def failing(name: str) -> Callable[..., Any]:
        def call(self: object, *args: Any, **kw: Any) -> Any:
            asked.append(name)
            if len(asked) % 3:
                raise OSError("503 Slow Down")
            return real[name](self, *args, **kw)

        return call

    (tmp_path / "a.tar").write_bytes(b"tar")
    copy = Store("memory://flaky/copy")
    for name, act in (
        ("put_file", lambda: copy.put(tmp_path / "a.tar", "a.tar")),
        ("rm_file", lambda: copy.remove("a.tar")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(type(store), name, failing(name))
            act()
        assert copy.read_if_exists("a.tar") == {"put_file": b"tar", "rm_file": None}[name]
    copy.remove("a.tar")
    assert asked == ["put_file"] * 3 + ["rm_file"] * 3
