"""Text files of users: every usual encoding gives the same text, others one line with the place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.shards.errors import UserError
from uniavgen.shards.text_files import decode_text, read_text

MARKS = {
    "utf-8": b"\xef\xbb\xbf",
    "utf-16-le": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "utf-32-le": b"\xff\xfe\0\0",
    "utf-32-be": b"\0\0\xfe\xff",
}


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.sampled_from(sorted(MARKS)))
def test_marked_text_is_decoded(text: str, encoding: str) -> None:
    assert decode_text(MARKS[encoding] + text.encode(encoding)) == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_unmarked_text_is_decoded(encoding: str) -> None:
    assert decode_text("name: 日本 é\n".encode(encoding)) == "name: 日本 é\n"


def test_other_encoding_names_file_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes("name: mine\n# é\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"the policy is not UTF-8 \(byte 0xe9\) \(.*policy.yaml:2\)"):
        read_text(path, "the policy")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_text(tmp_path, "the policy")
