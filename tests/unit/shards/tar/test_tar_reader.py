"""Reading members of a tar: only plain files with safe names are accepted."""

import io
import tarfile

import pytest

from uniavgen.shards.errors import UserError
from uniavgen.shards.tar.tar_reader import read_members


def tar_of(*members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 3 if kind == tarfile.REGTYPE else 0
    return info


def test_members_are_returned_by_extension() -> None:
    assert read_members(tar_of(member("ab.mp4"), member("ab.face.npz")), "ab") == {
        "mp4": b"xxx",
        "face.npz": b"xxx",
    }


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("../ab.mp4"), "unsafe name"),
        (member("/etc/ab.mp4"), "unsafe name"),
        (member("-rf.mp4"), "unsafe name"),
        (member("ab\n.mp4"), "unsafe name"),
        (member("ab"), "unsafe name"),
        (member("ab.mp4", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (member("ab.mp4", tarfile.LNKTYPE, "ab.flac"), "a link"),
        (member("ab.mp4", tarfile.CHRTYPE), "a device"),
        (member("ab.mp4", tarfile.DIRTYPE), "a folder"),
        (member("ab.mp4", tarfile.GNUTYPE_SPARSE), "sparse|cannot be read"),
        (member("ab.pkl"), "a pickle"),
        (member("ab.face.PTH"), "a pickle"),
        (member("other.mp4"), "another sample"),
    ],
)
def test_unsafe_member_is_refused_and_named(bad: tarfile.TarInfo, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_members(tar_of(member("ab.flac"), bad), "ab", "a.tar")
    assert caught.value.kind == "damaged-sample"
    assert "\n" not in str(caught.value)


def test_duplicate_member_is_refused() -> None:
    with pytest.raises(UserError, match="occurs twice"):
        read_members(tar_of(member("ab.mp4"), member("ab.mp4")), "ab")


def test_bytes_that_are_no_tar_are_refused() -> None:
    with pytest.raises(UserError, match="sample ab cannot be read"):
        read_members(b"\xff" * 1024, "ab")


def test_truncated_member_is_refused() -> None:
    with pytest.raises(UserError, match="truncated|cannot be read"):
        read_members(tar_of(member("ab.mp4"))[:514], "ab")
