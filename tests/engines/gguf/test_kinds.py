"""Files that are GGUF and no whole model, as engines for split models see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType

from tests.engines.models import Sizes, random_weights, write_model
from worker.engines.gguf.kinds import explain
from worker.errors import ModelError

pytestmark = pytest.mark.timeout(60)
NUMBER, TEXT = GGUFValueType.UINT16, GGUFValueType.STRING
FIRST, SECOND = "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"


def written(path: Path, **metadata: Any) -> Path:
    changes = {key.replace("__", "."): value for key, value in metadata.items()}
    return write_model(path, Sizes(layers=1), random_weights(Sizes(layers=1)), metadata=changes)


def part(path: Path, number: int) -> Path:
    return written(path, split__no=(NUMBER, number), split__count=(NUMBER, 2))


def test_a_sound_model_needs_no_words(tmp_path: Path) -> None:
    explain(written(tmp_path / "model.gguf"))


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"part 1 of 2 .*{SECOND} is not beside it. Download all parts"):
        explain(part(tmp_path / FIRST, 0))


def test_another_part_than_the_first_names_the_first(tmp_path: Path) -> None:
    part(tmp_path / FIRST, 0)
    with pytest.raises(ModelError, match=f"part 2 of 2 .*Give the first part as --model: {FIRST}"):
        explain(part(tmp_path / SECOND, 1))


def test_a_part_with_another_name_is_to_be_renamed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"part 1 of 2 .*Rename all parts.*-00001-of-00002\.gguf"):
        explain(part(tmp_path / "model.gguf", 0))


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    first, second = part(tmp_path / FIRST, 0), part(tmp_path / SECOND, 1)
    explain(first)
    second.write_bytes(second.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=f"{SECOND}: the file is not complete.*Download it again"):
        explain(first)
    second.write_bytes(b"")
    with pytest.raises(ModelError, match=f"{SECOND}: the file is empty"):
        explain(first)


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"general__type": (TEXT, "adapter")}, "an adapter .*Give the model itself"),
        ({"general__type": (TEXT, "imatrix")}, "importance matrix"),
        ({"general__architecture": (TEXT, "clip")}, "projector"),
    ],
)
def test_what_belongs_to_a_model_is_none(tmp_path: Path, metadata: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        explain(written(tmp_path / "m.gguf", **metadata))


def test_a_vocabulary_alone_is_no_model(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", Sizes(), {})
    with pytest.raises(ModelError, match="vocabulary only"):
        explain(path)
