"""`jobwire doctor --model FILE`: the file is opened as `serve` would open it, and what is wrong has a way out."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, GGUFValueType

import worker.bundled
from tests.cli.test_cli import jobwire
from tests.contracts.engines import found_for_gguf
from tests.engines.models import Sizes, random_weights, write_model
from worker.cli import EXIT_FAILED

pytestmark = pytest.mark.timeout(120)

BUNDLED = Path(worker.bundled.__file__).with_name("model.gguf")
ENGINES = ["numpy" if room == "numpy_llama" else room for room in found_for_gguf()]
NUMBER, TEXT = GGUFValueType.UINT32, GGUFValueType.STRING
SIZES = Sizes(layers=2)


def doctor(path: Path, engine: str, *arguments: str) -> tuple[int, str]:
    done = jobwire("doctor", "--port", "0", "--model", str(path), "--engine", engine, *arguments)
    assert done.stderr == ""
    return done.returncode, done.stdout


def the_problem(path: Path, engine: str, *arguments: str) -> str:
    """The one problem found, with what to do."""
    code, output = doctor(path, engine, *arguments)
    assert code == EXIT_FAILED
    assert output.count("problem  ") == 1
    assert output.endswith("The worker cannot serve here yet.\n")
    assert "Traceback" not in output
    found = re.search(r"^problem  (.*(\n +->.*)?)$", output, re.MULTILINE)
    assert found is not None
    return found[1]


def written(path: Path, **metadata: Any) -> Path:
    changes = {key.replace("__", "."): value for key, value in metadata.items()}
    return write_model(path / "model.gguf", SIZES, random_weights(SIZES), GGMLQuantizationType.Q8_0, changes)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sound_file_is_described_and_loaded(tmp_path: Path, engine: str) -> None:
    code, output = doctor(written(tmp_path), engine, "--slots", "3", "--context-tokens", "256")
    assert code == 0, output
    assert "architecture llama, 0M weights stored as Q8_0 in 1 MiB, made for a context of 512 tokens" in output
    assert "Tokenizer: gpt2 (qwen2), 270 tokens. Chat template: its own" in output
    assert re.search(r"The engine loads it in [0-9.]+ s: context of 256 tokens, 3 slots", output)
    assert re.search(r"^ok +Memory: weights 1 MiB, at most 1 MiB of KV cache .*[0-9.]+ [MG]iB free$", output, re.M)


def test_a_file_without_a_template_is_served_with_a_plain_one(tmp_path: Path) -> None:
    _, output = doctor(written(tmp_path, tokenizer__chat_template=None), "numpy")
    assert "Chat template: none in the file, so messages are put into a plain one" in output


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "Download the file again"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html><body>Access denied</body></html>", "web page.*Download the file again"),
    "safetensors": (struct.pack("<Q", 20) + b'{"__metadata__":{}}  ', "convert_hf_to_gguf"),
    "its first half": (BUNDLED.read_bytes()[: 1 << 21], "not complete.*Download it again"),
    "all but the last byte": (BUNDLED.read_bytes()[:-1], "not complete.*Download it again"),
    "its header": (BUNDLED.read_bytes()[:2000], "not complete.*Download it again"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(100), "version 1.*Convert the model again"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian.*Convert the model again"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_problem_with_a_way_out(tmp_path: Path, engine: str, name: str) -> None:
    data, words = BROKEN[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert re.search(words, the_problem(path, engine))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"split__no": (NUMBER, 0), "split__count": (NUMBER, 2)}, "part 1 of 2"),
        ({"general__architecture": (TEXT, "clip")}, "Give the model itself"),
        ({"general__architecture": (TEXT, "qwen9")}, "architecture"),
        ({"tokenizer__ggml__tokens": None, "tokenizer__ggml__token_type": None}, "onvert the model again"),
        ({"tokenizer__chat_template": (TEXT, "{% endfo %}")}, "--chat-template PATH"),
        ({"llama__block_count": (NUMBER, 3)}, "blk.2"),
    ],
)
def test_a_file_that_cannot_be_served_is_a_problem(
    tmp_path: Path, engine: str, metadata: dict[str, Any], words: str
) -> None:
    assert words in the_problem(written(tmp_path, **metadata), engine)


def test_slots_that_memory_has_no_room_for_are_not_tried(tmp_path: Path) -> None:
    """A cache of 1 TiB: the model is loaded with one slot, and serving is said to need care."""
    path = written(tmp_path, llama__context_length=(NUMBER, 1 << 18))
    code, output = doctor(path, "numpy", "--slots", "4096", "--context-tokens", str(1 << 18))
    assert code == 0, output
    assert "context of 262,144 tokens, 1 slot for this test" in output
    assert re.search(r"^note +Memory: weights 1 MiB, at most 1024.0 GiB of KV cache", output, re.M)
    assert "-> Give fewer --slots, or a smaller --context-tokens." in output


def test_weights_that_memory_has_no_room_for_are_not_loaded(tmp_path: Path) -> None:
    """The file has a tensor of 1 TiB, and a hole where it lies."""
    path = tmp_path / "large.gguf"
    write_model(path, SIZES, random_weights(SIZES))
    data = bytearray(path.read_bytes())
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4
    data[at : at + 16] = struct.pack("<QQ", 1 << 18, 1 << 20)
    path.write_bytes(data)
    os.truncate(path, len(data) + (1 << 40))
    problem = the_problem(path, "numpy")
    assert re.search(r"weights need 1024.0 GiB on numpy, and .* are free\n.*give a smaller model", problem)
