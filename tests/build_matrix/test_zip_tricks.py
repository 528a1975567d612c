"""Wheels that are made to escape from their folder, to say one thing twice, or to be larger than they say."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest

from build_matrix.toolchain.ranged import FileSource, read_members, safe_path
from hub_loader.errors import ToolchainError


def wheel(tmp_path: Path, content: bytes) -> FileSource:
    path = tmp_path / "wheel.whl"
    path.write_bytes(content)
    return FileSource(path)


def zipped(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> bytearray:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, content)
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "a/..", "//host/x"])
def test_member_when_its_name_leads_out_of_the_folder_then_refused(name: str) -> None:
    with pytest.raises(ToolchainError, match="unsafe path"):
        safe_path(name)


@pytest.mark.parametrize("name", ["a/b.h", "a..b", "...", "a\\..\\b", "C:x"])
def test_member_when_its_name_is_odd_and_stays_inside_then_accepted(name: str, tmp_path: Path) -> None:
    assert (tmp_path / safe_path(name)).resolve().is_relative_to(tmp_path.resolve())


def test_member_when_its_header_and_the_directory_name_it_differently_then_refused(tmp_path: Path) -> None:
    content = zipped("good.h", b"x")
    content[content.index(b"good.h") : content.index(b"good.h") + 6] = (
        b"evil.h"  # in the header, not the directory
    )
    with pytest.raises(ToolchainError, match="damaged"):
        list(read_members(wheel(tmp_path, bytes(content)), lambda name: True))


def test_member_when_it_inflates_to_more_than_it_says_then_refused_after_what_it_says(tmp_path: Path) -> None:
    content = zipped("bomb.h", bytes(64 << 20), zipfile.ZIP_DEFLATED)
    for record, at in (
        (b"PK\x03\x04", 22),
        (b"PK\x01\x02", 24),
    ):  # the size in the header and in the directory
        struct.pack_into("<I", content, content.index(record) + at, 10)
    with pytest.raises(ToolchainError, match="damaged"):
        list(read_members(wheel(tmp_path, bytes(content)), lambda name: True))


def test_archive_when_a_member_is_a_link_then_what_is_read_is_its_text(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link.h")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    found = dict(read_members(wheel(tmp_path, buffer.getvalue()), lambda name: True))
    assert found == {"link.h": b"/etc/passwd"}
