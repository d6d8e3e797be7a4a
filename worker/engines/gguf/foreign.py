"""Tells what a file is that is given as a model and cannot be one, from its first bytes, and what to do about it."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from worker.errors import ModelError

MAGIC = b"GGUF"

GIVE = "Give a .gguf file as --model."
AGAIN = "Download the file again"

HEAD_BYTES = 512
"""Bytes looked at."""

SAFETENSORS_HEAD_BYTES_MAX = 1 << 30
"""A safetensors file begins with the length of the JSON object that follows; no real one is longer."""

LFS = re.compile(rb"\s*version https://(git-lfs|hawser)\.github\.com/spec/")
HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head|body)", re.IGNORECASE)
JSON = re.compile(rb'(\xef\xbb\xbf)?\s*[{\[]\s*["\]}]')

FOREIGN = {
    b"PK\x03\x04": "this is a ZIP archive, as PyTorch's .bin and .pt files are, and no GGUF file",
    b"ggml": "this is a file of the format before GGUF (GGML)",
    b"lmgg": "this is a file of the format before GGUF (GGML)",
    b"ggjt": "this is a file of the format before GGUF (GGJT)",
    b"tjgg": "this is a file of the format before GGUF (GGJT)",
    b"FUGG": "this is a big-endian GGUF file",
    b"\x1f\x8b": "this is a file compressed by gzip",
    b"\x28\xb5\x2f\xfd": "this is a file compressed by Zstandard",
    b"\x80\x02": "this is a file of Python's pickle, as older PyTorch files are, and no GGUF file",
}
"""Files of other kinds, by how they begin."""


def refuse_foreign(path: Path) -> None:
    """Raise ModelError if this is not a file, cannot be opened, is empty or does not begin like a GGUF file."""
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path}: this is not a file. {GIVE}")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not head.startswith(MAGIC):
        raise ModelError(f"{path}: {_what(head)}")


def unreadable(path: Path, error: OSError | ValueError) -> ModelError:
    """Return the error for a file that the system does not let us read."""
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return ModelError(f"There is no model file {path}. Check the path given as --model.")
    remedy = "Let this user read it." if number in (errno.EACCES, errno.EPERM) else "Check the path given as --model."
    return ModelError(f"{path}: {getattr(error, 'strerror', None) or error}. {remedy}")


def _what(head: bytes) -> str:
    """Return what the file is, and what to do."""
    if not head.strip(b"\0"):
        return f"the file {'is empty' if not head else 'begins with zeros'}. {AGAIN}: it did not arrive."
    if MAGIC.startswith(head):
        return f"the file ends after {len(head)} bytes. {AGAIN}: it did not arrive."
    if LFS.match(head):
        return "this is a pointer of Git LFS, not the model itself. Run `git lfs pull` in that folder."
    if HTML.match(head):
        return f"this is a web page, not a model: the address gave an error or asks for a login. {AGAIN}."
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= length < SAFETENSORS_HEAD_BYTES_MAX:
        return (
            "this is a safetensors file, not a GGUF file. Convert its folder with llama.cpp's convert_hf_to_gguf.py, "
            "or give the folder as --model where ExLlamaV2 is installed."
        )
    known = next((what for begin, what in FOREIGN.items() if head.startswith(begin)), None)
    if known is not None:
        return f"{known}. {GIVE}"
    if JSON.match(head):
        return f"this is a JSON file, not a GGUF file; if it is an error of the server, {AGAIN.lower()}. {GIVE}"
    return f"this is not a GGUF file. {GIVE}"
