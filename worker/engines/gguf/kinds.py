"""GGUF files that are sound and yet no whole language model: parts of a split one, adapters, projectors, vocabularies.

Sentences end with what to do. `llama_cpp` runs a split model if it gets the first part and finds the others beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

from worker.engines.gguf.file import LLAMA_CPP, Gguf, open_gguf
from worker.engines.gguf.foreign import refuse_foreign
from worker.errors import ModelError

NEEDS_MODEL = "Give the model itself as --model."

SUPPLEMENTS = {
    "adapter": "it is an adapter (LoRA) for a model, not a model",
    "mmproj": "it is the projector of a model for images or sound, not the language model",
    "imatrix": "it is the importance matrix for quantising a model, not a model",
}
"""What `general.type` says of files that are parts of something else."""

PROJECTORS = ("clip", "mmproj")
"""Architectures of projectors, whose files before 2025 have no `general.type`."""

PART_NAME = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf", re.DOTALL)


def refuse_supplement(file: Gguf) -> None:
    """Raise ModelError for a file that belongs to a model but is none."""
    kind = str(file.metadata.get("general.type", "model"))
    architecture = str(file.metadata.get("general.architecture", ""))
    what = SUPPLEMENTS.get("mmproj" if architecture in PROJECTORS else kind)
    if what is not None:
        raise ModelError(f"{file.path}: {what}. {NEEDS_MODEL}")
    if not file.tensors and "split.count" not in file.metadata:
        raise ModelError(f"{file.path}: it has a vocabulary only, and no weights. {NEEDS_MODEL}")


def part_of(file: Gguf) -> tuple[int, int]:
    """Return which part of how many a file is, counted from 1; (1, 1) for a whole model."""
    count, number = file.metadata.get("split.count", 1), file.metadata.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(number, int) or not 0 <= number < max(count, 1):
        raise ModelError(f"{file.path}: it says to be part {number!r} of {count!r}. Download it again.")
    return number + 1, max(count, 1)


def parts_of(file: Gguf) -> list[Path]:
    """Return where llama.cpp looks for the parts of a split model, in order; [] if the file's name is odd."""
    _, count = part_of(file)
    name = PART_NAME.fullmatch(file.path.name)
    if name is None or int(name[2]) != count:
        return []
    return [file.path.with_name(f"{name[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def refuse_part(file: Gguf) -> None:
    """Raise ModelError for a part of a split model, for engines that read one file."""
    number, count = part_of(file)
    if count > 1:
        raise ModelError(
            f"{file.path}: it is part {number} of {count} of a model, and the numpy engine reads models in one file. "
            f"{LLAMA_CPP} Or merge them: llama-gguf-split --merge FIRST-PART MERGED."
        )


def refuse_incomplete(file: Gguf) -> None:
    """Raise ModelError for a part that is not the first, and for a first one whose other parts are missing."""
    number, count = part_of(file)
    parts = parts_of(file)
    if count > 1 and not parts:
        raise ModelError(
            f"{file.path}: it is part {number} of {count} of a model, and its name does not say so. "
            f"Rename all parts as they were published: NAME-00001-of-{count:05}.gguf, and so on."
        )
    missing = [path.name for path in parts if count > 1 and not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{file.path}: it is part {number} of {count} of a model, and {missing[0]}{more} {'are' if more else 'is'} "
            "not beside it. Download all parts into one folder, and give the first as --model."
        )
    if number > 1:
        raise ModelError(
            f"{file.path}: it is part {number} of {count} of a model. Give the first part as --model: {parts[0].name}."
        )


def explain(path: Path) -> None:
    """Raise ModelError with what is wrong with a file that llama.cpp did not load, if it can be seen from outside."""
    refuse_foreign(path)
    file = open_gguf(path)
    refuse_supplement(file)
    refuse_incomplete(file)
    for part in parts_of(file)[1:]:
        refuse_foreign(part)
        open_gguf(part)
