"""Files that are no GGUF: each is refused with what it is and what to do, by every engine that can be imported."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.contracts.engines import found_for_gguf
from worker.engines.base import EngineSpec
from worker.engines.choose import choose, choose_reader
from worker.engines.gguf.foreign import refuse_foreign
from worker.errors import ModelError

pytestmark = pytest.mark.timeout(60)

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 144811072\n"
FILES = [
    (b"", "is empty.*Download the file again"),
    (bytes(100), "begins with zeros.*Download the file again"),
    (b"GG", "ends after 2 bytes.*Download the file again"),
    (LFS, "pointer of Git LFS.*git lfs pull"),
    (b"<!DOCTYPE html><html><body>Access denied</body></html>", "web page.*Download the file again"),
    (b"\n\n <html>", "web page"),
    (b"\xef\xbb\xbf<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
    (b'{"error": "Invalid username or password."}', "JSON file.*error of the server"),
    (struct.pack("<Q", 20) + b'{"__metadata__":{}}  ', "safetensors.*convert_hf_to_gguf"),
    (b"PK\x03\x04" + bytes(40), "ZIP archive"),
    (b"tjgg" + bytes(40), "before GGUF"),
    (b"\x80\x02" + bytes(100), "pickle"),
    (b"\x1f\x8b\x08" + bytes(40), "gzip"),
    (b"FUGG" + bytes(40), "big-endian"),
    (b"something else", "not a GGUF file"),
    (b"Entry not found", "not a GGUF file.*Give a .gguf file"),
]


@pytest.mark.parametrize(("data", "what"), FILES)
def test_what_it_is_and_what_to_do(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=what) as caught:
        refuse_foreign(path)
    assert str(path) in caught.value.detail
    assert "onvert the model again" not in caught.value.detail


@pytest.mark.parametrize("engine", found_for_gguf())
def test_every_engine_says_so(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(LFS)
    spec = EngineSpec(model=str(path), engine="numpy" if engine == "numpy_llama" else engine)
    load, loaded, _ = choose(spec)
    with pytest.raises(ModelError, match="git lfs pull"):
        load(loaded, lambda _progress: None)
    read, loaded, _ = choose_reader(spec)
    with pytest.raises(ModelError, match="git lfs pull"):
        read(loaded)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        (tmp_path / "absent.gguf", "no model file .*Check the path"),
        (Path("a\0b"), "null byte"),
    ):
        with pytest.raises(ModelError, match=what):
            refuse_foreign(path)
