"""The settings of this engine alone, beside those that all engines share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from worker.errors import ModelError

PAGE_TOKENS = 256
"""Tokens of a page, in which ExLlamaV2 hands out its KV cache."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`EngineSpec.options` of this engine, as typed values. The defaults suit most machines.

    `cache` is the precision of the KV cache; `cache_tokens` its size in tokens, 0 for as much as the slots could use
    and the GPU has. `slice_tokens` of output are reserved at a time, 0 for all. `chunk_tokens` bounds the prompt tokens
    of one forward pass. `gpu_split` is "auto", or GiB of weights for each GPU ("20,24"); without it one GPU is used.
    `draft_model` (a folder) or `ngram` speculate `draft_tokens` ahead. `loras` are folders of adapters, "a=0.5" scales
    one.
    """

    device: int = 0
    cache: Literal["fp16", "q8", "q6", "q4"] = "fp16"
    cache_tokens: int = 0
    slice_tokens: int = 1024
    chunk_tokens: int = 512
    gpu_split: str = ""
    tensor_parallel: bool = False
    draft_model: str = ""
    draft_tokens: int = 4
    ngram: bool = False
    loras: str = ""

    @property
    def speculates(self) -> bool:
        """Whether tokens are guessed ahead."""
        return self.ngram or bool(self.draft_model)

    @property
    def ahead(self) -> int:
        """The number of tokens guessed ahead in a step."""
        return self.draft_tokens if self.speculates else 0

    @property
    def split_gib(self) -> list[float] | None:
        """GiB of weights for each GPU, None for "auto" or one GPU. Raises ModelError for anything else."""
        if self.gpu_split in ("", "auto"):
            return None
        try:
            return [float(part) for part in self.gpu_split.split(",")]
        except ValueError:
            raise ModelError(f"gpu_split is {self.gpu_split!r}, not auto or GiB per GPU, as in 20,24.") from None

    def gpus(self, count: int, first: int = 0) -> list[int]:
        """Return the indices of the GPUs that may be used, of `count` that there are; where one is enough, `first`."""
        if self.split_gib is not None:
            return list(range(min(count, len(self.split_gib))))
        if self.gpu_split or self.tensor_parallel:
            return list(range(count))
        return [first]

    @property
    def adapters(self) -> list[tuple[Path, float]]:
        """Folders of LoRA adapters with their scales. Raises ModelError for a scale that is no number."""
        found = []
        for part in filter(None, self.loras.split(",")):
            name, _, scale = part.partition("=")
            try:
                found.append((Path(name), float(scale or 1.0)))
            except ValueError:
                raise ModelError(f"loras: the scale {scale!r} of {name} is no number.") from None
        return found


def read_options(given: dict[str, str]) -> Options:
    """Return the options as typed values. Raises ModelError for one that does not exist or has a wrong value."""
    try:
        options = msgspec.convert(given, Options, strict=False)
    except msgspec.ValidationError as error:
        raise ModelError(f"An option of the ExLlamaV2 engine is wrong: {error}.") from None
    if options.chunk_tokens < PAGE_TOKENS or options.chunk_tokens % PAGE_TOKENS:
        raise ModelError(f"chunk_tokens is {options.chunk_tokens}, but must be a multiple of {PAGE_TOKENS}.")
    if options.cache_tokens < 0 or options.slice_tokens < 0 or not 1 <= options.draft_tokens <= 16:
        raise ModelError("cache_tokens and slice_tokens must be at least 0, and draft_tokens 1 to 16.")
    if options.ngram and options.draft_model:
        raise ModelError("Guess tokens with ngram or with draft_model, not with both.")
    _ = options.split_gib, options.adapters  # raises ModelError for values that they cannot read
    return options
