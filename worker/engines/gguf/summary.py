"""What a GGUF file says of itself, for people: read from its header alone, with nothing trusted that is not there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from worker import printable
from worker.engines.gguf.file import Gguf, MetadataValue, open_gguf
from worker.engines.gguf.kinds import parts_of
from worker.engines.gguf.storage import STORAGE
from worker.engines.prompt.chat import named_templates

TYPES_SHOWN = 3
"""Types of tensors that are named; files of one quantisation have two to four."""

CACHE_VALUE_BYTES = {"numpy": 4}
"""Bytes of a number in an engine's cache, if it is not the usual 2; numpy keeps its weights so as well."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The facts. `context` is what the model was made for, None if unknown; `cache_values` are those of one token.

    `templates` are the names of its chat templates, "default" for the one without a name.
    """

    architecture: str
    quantisation: str
    weights: int
    weights_bytes: int
    context: int | None
    tokenizer: str
    tokens: int
    templates: tuple[str, ...]
    cache_values: int | None

    def memory_bytes(self, engine: str) -> int:
        """Return the memory that the weights need in an engine."""
        size = CACHE_VALUE_BYTES.get(engine)
        return self.weights_bytes if size is None else size * self.weights

    def cache_bytes(self, engine: str, tokens: int) -> int | None:
        """Return the memory of the KV cache of so many tokens, at most; None if it is not known."""
        return None if self.cache_values is None else CACHE_VALUE_BYTES.get(engine, 2) * self.cache_values * tokens


def summary_of(file: Gguf) -> Summary:
    """Sum up a file, and the other parts of a split model. Raises ModelError for a part that is not sound."""
    files = [file, *(open_gguf(part) for part in parts_of(file) if part != file.path and part.is_file())]
    tensors = [tensor for part in files for tensor in part.tensors.values()]
    architecture = _text(file, "general.architecture") or "unknown"
    kind, cut = _text(file, "tokenizer.ggml.model"), _text(file, "tokenizer.ggml.pre")
    names = file.metadata.get("tokenizer.ggml.tokens", [])
    stored: Counter[str] = Counter()
    size = 0
    for tensor in tensors:
        storage = STORAGE.get(tensor.type)
        name = f"type {tensor.type}" if storage is None else storage.name
        size += 0 if storage is None else storage.bytes_of(tensor.size)
        if len(tensor.shape) > 1:
            stored[name] += tensor.size
    return Summary(
        architecture=architecture,
        quantisation=_shares(stored),
        weights=sum(tensor.size for tensor in tensors),
        weights_bytes=size,
        context=_number(file, f"{architecture}.context_length"),
        tokenizer=(f"{kind} ({cut})" if cut else kind) or "none",
        tokens=len(names) if isinstance(names, list) else 0,
        templates=tuple(map(printable.name, sorted(named_templates(file.metadata)))),
        cache_values=_cache_values(file, architecture),
    )


def _shares(stored: Counter[str]) -> str:
    total = sum(stored.values())
    shown = [f"{name} {round(100 * size / total)} %" for name, size in stored.most_common(TYPES_SHOWN)]
    return next(iter(stored), "no weights") if len(stored) < 2 else ", ".join(shown)


def _cache_values(file: Gguf, architecture: str) -> int | None:
    """Return the numbers of keys and values of one token in all layers; layers with a window or a state need less."""
    layers, hidden = _number(file, f"{architecture}.block_count"), _number(file, f"{architecture}.embedding_length")
    heads = file.metadata.get(f"{architecture}.attention.head_count")
    shared = file.metadata.get(f"{architecture}.attention.head_count_kv", heads)
    if layers is None or not _whole(heads) or not _whole(shared):
        return None
    most = int(np.max(heads))
    dim = _number(file, f"{architecture}.attention.key_length") or (hidden // most if hidden and most > 0 else 0)
    values = _number(file, f"{architecture}.attention.value_length") or dim
    count = int(np.sum(shared)) if isinstance(shared, np.ndarray) else int(shared) * layers
    return max(count, 0) * (dim + values) or None


def _whole(value: MetadataValue | None) -> TypeGuard[int | NDArray[np.integer[Any]]]:
    """Return whether this is a whole number, or some, one for each layer."""
    return isinstance(value, int) or (isinstance(value, np.ndarray) and value.dtype.kind in "ui" and value.size > 0)


def _text(file: Gguf, key: str) -> str:
    value = file.metadata.get(key, "")
    return printable.name(value) if isinstance(value, str) else ""


def _number(file: Gguf, key: str) -> int | None:
    value = file.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
