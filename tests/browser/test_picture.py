"""The picture in README.md is there, small, and can be renewed."""

from __future__ import annotations

import struct

from playwright.sync_api import Browser

from tests.browser.picture import BYTES_MAX, PICTURE, SIZE, SLOTS, picture
from tests.support.server import serving


def size_of(png: bytes) -> dict[str, int]:
    """Return the size that the header of a PNG states."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    width, height = struct.unpack(">II", png[16:24])
    return {"width": width, "height": height}


def test_the_picture_is_a_small_png_of_the_page() -> None:
    """When this fails: `python -m tests.browser.picture`."""
    content = PICTURE.read_bytes()
    assert size_of(content) == SIZE
    assert len(content) < BYTES_MAX


def test_the_page_can_be_pictured(browser: Browser) -> None:
    with serving("--slots", str(SLOTS)) as server:
        taken = picture(browser, server)
    assert size_of(taken) == SIZE
    assert len(taken) > BYTES_MAX / 4, "little can be seen"
