"""What a header says, for people: also of odd headers, whose numbers nobody checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from tests.engines.models import Sizes, random_weights, write_model
from worker.engines.gguf.file import open_gguf
from worker.engines.gguf.summary import Summary, summary_of

pytestmark = pytest.mark.timeout(60)
NUMBER, REAL, TEXT, ARRAY = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING, GGUFValueType.ARRAY
SIZES = Sizes(layers=2)


def summary(path: Path, **metadata: Any) -> Summary:
    changes = {key.replace("__", "."): value for key, value in metadata.items()}
    made = write_model(path / "m.gguf", SIZES, random_weights(SIZES), GGMLQuantizationType.Q8_0, changes)
    return summary_of(open_gguf(made))


def test_a_model_is_summed_up(tmp_path: Path) -> None:
    found = summary(tmp_path, tokenizer__chat_template__tool_use=(TEXT, "x"))
    assert (found.architecture, found.quantisation, found.context) == ("llama", "Q8_0", 512)
    assert (found.tokenizer, found.tokens, found.templates) == ("gpt2 (qwen2)", SIZES.vocab, ("default", "tool_use"))
    assert found.weights == sum(tensor.size for tensor in random_weights(SIZES).values())
    assert found.weights_bytes < found.weights * 1.2
    assert found.cache_values == 2 * 2 * (32 + 32)
    assert found.memory_bytes("numpy") == 4 * found.weights
    assert found.memory_bytes("llama_cpp") == found.weights_bytes
    assert found.cache_bytes("numpy", 10) == 10 * 256 * 4
    assert found.cache_bytes("llama_cpp", 10) == 10 * 256 * 2


def test_layers_may_differ(tmp_path: Path) -> None:
    found = summary(tmp_path, llama__attention__head_count_kv=(ARRAY, [1, 2]))
    assert found.cache_values == 3 * 64


@pytest.mark.parametrize("heads", [(REAL, float("nan")), (ARRAY, ["2"]), (ARRAY, [0.5]), (TEXT, "two"), (NUMBER, 0)])
def test_what_says_nothing_of_the_cache_is_unknown(tmp_path: Path, heads: Any) -> None:
    found = summary(tmp_path, llama__attention__head_count_kv=heads)
    assert found.cache_values is None
    assert found.cache_bytes("numpy", 10) is None


def test_names_from_the_file_stay_in_their_line(tmp_path: Path) -> None:
    name = "a\x1b[2J\nok       forged"
    found = summary(tmp_path, general__architecture=(TEXT, name), tokenizer__ggml__pre=(TEXT, name))
    for text in (found.architecture, found.tokenizer):
        assert "\n" not in text
        assert "\x1b" not in text
    assert (found.context, found.cache_values) == (None, None)
