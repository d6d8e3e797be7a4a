"""llama.cpp itself, from the package cyllama: whether it can run here, its models, contexts and vocabularies."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

from worker.engines.base import LoadProgress, OnLoad
from worker.engines.gguf.foreign import refuse_foreign
from worker.engines.gguf.kinds import explain
from worker.engines.machine import lacks_avx2, memory_bytes
from worker.engines.vocabulary import commands
from worker.errors import ModelError

SLOTS_MAX = 256
"""llama.cpp's own limit."""

VOCAB_TYPE_SPM = 1
"""The type of a SentencePiece vocabulary (`llama_vocab_type` in llama.h)."""

ATTR_UNKNOWN, ATTR_USER_DEFINED = 1, 16
"""Attributes of tokens (`llama_token_attr` in llama.h)."""


def missing() -> str | None:
    """Return why this engine cannot run here, None if it can. Imports nothing of it."""
    if sys.version_info < (3, 12):
        return f"llama.cpp needs Python 3.12 or newer, this is {platform.python_version()}"
    if importlib.util.find_spec("cyllama") is None:
        return 'llama.cpp is not installed: pip install "jobwire[gguf]"'
    if lacks_avx2():
        # Its wheels would end the process with an illegal instruction.
        return "llama.cpp needs a CPU with AVX2"
    return None


def library() -> Any:
    """Import llama.cpp. Raises ModelError with the reason if it cannot run here."""
    reason = missing()
    if reason is not None:
        raise ModelError(reason)
    # Both are read when the library loads. Waiting threads that spin would occupy the cores of the others, and a failed
    # assertion would start a debugger.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    lib: Any = importlib.import_module("cyllama.llama.llama_cpp")
    lib.disable_logging()
    lib.llama_backend_init()
    return lib


def load_model(lib: Any, path: Path, on_load: OnLoad) -> Any:
    """Load a GGUF file. Raises ModelError when it is missing, broken or of a kind that llama.cpp does not know."""
    refuse_foreign(path)
    size = path.stat().st_size
    reported = -1

    def progress(share: float) -> bool:
        nonlocal reported
        percent = int(share * 100)
        if percent > reported:
            reported = percent
            on_load(LoadProgress("weights", percent, 100, int(share * size)))
        return True

    params = lib.LlamaModelParams()
    params.progress_callback = progress
    reasons: list[str] = []
    lib.set_log_callback(lambda level, text: reasons.append(text.strip()) if level == 4 else None)
    try:
        return lib.LlamaModel(str(path), params, False)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        explain(path)
        # The first line of llama.cpp's own error is more precise than the exception.
        reason = next(iter(reasons), str(error)).rpartition("error loading model: ")[2].rstrip(".")
        raise ModelError(f"{path} cannot be loaded: llama.cpp says: {reason}. {_remedy(reason)}") from error
    finally:
        lib.disable_logging()


def _remedy(reason: str) -> str:
    """Return what to do about a sound file that llama.cpp refuses for this reason."""
    if "unknown model architecture" in reason or "unknown pre-tokenizer" in reason:
        return "A newer release may know it: pip install --upgrade cyllama. Or give another model."
    if "memory" in reason or "alloc" in reason:
        return "Give a smaller model, or one that is quantised to fewer bits."
    return "Convert the model again with a current llama.cpp, or give another file."


def make_context(lib: Any, model: Any, slots: int, context_tokens: int, batch_tokens: int, threads: int) -> Any:
    """Make a context whose KV cache has `slots` slots of `context_tokens`, for batches of up to `batch_tokens`."""
    params = lib.LlamaContextParams()
    params.n_seq_max = params.n_outputs_max = slots
    params.n_ctx = slots * context_tokens
    # A cache for each slot: twice as fast at 64 sequences, and one sequence cannot fill another's.
    params.kv_unified = False
    params.n_batch = params.n_ubatch = batch_tokens
    params.n_threads = params.n_threads_batch = threads
    params.no_perf = True
    context = lib.LlamaContext(model, params, False)
    assert context.n_ctx_seq >= context_tokens, "llama.cpp made slots smaller than asked"
    return context


def affordable_slots(model: Any, asked: int, context_tokens: int) -> int:
    """Return the number of slots asked for, or fewer: their cache of 16-bit values fits half of the memory left."""
    limit = min(asked, SLOTS_MAX)
    memory = memory_bytes()
    if memory is None:
        return limit
    metadata = model.metadata()
    head = metadata.get(f"{metadata.get('general.architecture')}.attention.key_length")
    head_values = int(head) if head else model.n_embd // max(model.n_head, 1)
    slot_bytes = context_tokens * model.n_layer * model.n_head_kv * head_values * 2 * 2
    return max(1, min(limit, (memory - int(model.size)) // 2 // max(int(slot_bytes), 1)))


class LlamaVocabulary:
    """A model's tokens, see worker.engines.vocabulary."""

    def __init__(self, model: Any) -> None:
        self._model = model  # a vocabulary is a part of its model
        self._vocab = vocab = model.get_vocab()
        self.size: int = vocab.n_vocab
        self.bos_id: int | None = _token(vocab.token_bos())
        self.add_bos: bool = vocab.get_add_bos()
        self.eos_ids = frozenset(token for token in range(self.size) if vocab.is_eog(token))
        self.special_ids = frozenset(token for token in range(self.size) if vocab.is_control(token))
        self._bytes = [b"" if t in self.special_ids else vocab.token_to_bytes(t) for t in range(self.size)]
        added = {token for token in range(self.size) if vocab.get_attr(token) & (ATTR_UNKNOWN | ATTR_USER_DEFINED)}
        self.special_names = commands(self.name(token) for token in self.special_ids | self.eos_ids | added)
        self._unwritten = self._bytes_without_tokens()
        names = max((len(name.encode()) for name in self.special_names), default=0)
        self.token_text_max = max(names, *map(len, self._bytes), 1)

    def _bytes_without_tokens(self) -> frozenset[int]:
        """Return the bytes for which a SentencePiece vocabulary has no token: llama.cpp aborts where it needs one."""
        if self._vocab.vocab_type != VOCAB_TYPE_SPM:
            return frozenset()
        names = {self.name(token) for token in range(self.size)}
        self._names = names
        return frozenset(byte for byte in range(256) if f"<0x{byte:02X}>" not in names and chr(byte) not in names)

    def _can_write(self, character: str) -> bool:
        # A space is written as another character.
        return (
            character == " "
            or character in self._names
            or not self._unwritten.intersection(character.encode("utf-8", "replace"))
        )

    @property
    def eos_name(self) -> str:
        """The name of the end token."""
        return self.name(_token(self._vocab.token_eos()))

    def name(self, token: int | None) -> str:
        """Return the text that stands for a special token in a prompt, "" for None."""
        return "" if token is None else str(self._vocab.get_text(token))

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`, without a begin token. Characters that the vocabulary cannot write are left out."""
        if self._unwritten:
            text = "".join(filter(self._can_write, text))
        ids: list[int] = self._vocab.tokenize(text, False, special)
        return ids

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token."""
        return self._bytes[token]


def _token(token: int) -> int | None:
    """Return a special token, None for the -1 by which llama.cpp says that the model has none."""
    return None if token < 0 else token
