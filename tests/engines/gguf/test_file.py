"""GGUF: what is read, compared with the `gguf` package, and that no broken file does more than raise ModelError."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.gguf.file import Gguf, open_gguf
from worker.engines.gguf.summary import summary_of
from worker.errors import ModelError

KINDS = [GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0]


def matrix(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((5, 64)).astype(np.float32)


def sample(path: Path, kinds: list[GGMLQuantizationType] = KINDS, alignment: int | None = None) -> Path:
    """A file with every type of value and of tensor."""
    writer = GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name in ("uint8", "uint16", "uint32", "uint64"):
        getattr(writer, f"add_{name}")(f"v.{name}", 200)
    for name in ("int8", "int16", "int32", "int64"):
        getattr(writer, f"add_{name}")(f"v.{name}", -100)
    writer.add_float32("v.float32", 1.5)
    writer.add_float64("v.float64", 0.1)
    writer.add_bool("v.true", True)
    writer.add_bool("v.false", False)
    writer.add_string("v.text", "é 🦊")
    writer.add_array("v.texts", ["a", "", "ß"])
    writer.add_array("v.numbers", [1, -2, 3])
    writer.add_array("v.flags", [True, False])
    for number, kind in enumerate(kinds):
        writer.add_tensor(kind.name, quants.quantize(matrix(number), kind), raw_dtype=kind)
    writer.add_tensor("vector", np.arange(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return sample(tmp_path_factory.mktemp("gguf") / "sample.gguf").read_bytes()


def read_everything(file: Gguf) -> None:
    """Do what a loader does."""
    for name, tensor in file.tensors.items():
        file.read(name, tensor.shape)
    for key in file.metadata:
        for kind in (str, int, float, bool, list):
            try:
                file.get(key, kind)
            except ModelError:
                continue


def test_values_of_every_type(tmp_path: Path) -> None:
    file = open_gguf(sample(tmp_path / "a.gguf"))
    assert [file.get(f"v.uint{bits}", int) for bits in (8, 16, 32, 64)] == [200] * 4
    assert [file.get(f"v.int{bits}", int) for bits in (8, 16, 32, 64)] == [-100] * 4
    assert file.get("v.float32", float) == 1.5
    assert file.get("v.float64", float) == 0.1
    assert file.get("v.uint8", float) == 200.0
    assert (file.get("v.true", bool), file.get("v.false", bool)) == (True, False)
    assert file.get("v.text", str) == "é 🦊"
    assert file.get("v.texts", list) == ["a", "", "ß"]
    assert file.get("v.numbers", np.ndarray).tolist() == [1, -2, 3]
    assert file.get("v.flags", np.ndarray).tolist() == [True, False]


def test_a_missing_value_is_the_default_or_refused(tmp_path: Path) -> None:
    file = open_gguf(sample(tmp_path / "a.gguf"))
    assert file.get("absent", int, 7) == 7
    with pytest.raises(ModelError, match=r"'absent' is missing"):
        file.get("absent", int)


@pytest.mark.parametrize(("key", "kind"), [("v.true", int), ("v.text", int), ("v.uint8", str), ("v.float32", int)])
def test_a_value_of_another_type_is_refused(tmp_path: Path, key: str, kind: type[int]) -> None:
    file = open_gguf(sample(tmp_path / "a.gguf"))
    with pytest.raises(ModelError, match=f"'{key}' is not a {kind.__name__}"):
        file.get(key, kind)


@pytest.mark.parametrize("alignment", [None, 8, 256])
@pytest.mark.parametrize(("number", "kind"), list(enumerate(KINDS)))
def test_tensors_are_dequantised_like_ggml(
    tmp_path: Path, number: int, kind: GGMLQuantizationType, alignment: int | None
) -> None:
    file = open_gguf(sample(tmp_path / "a.gguf", alignment=alignment))
    expected = quants.dequantize(quants.quantize(matrix(number), kind), kind)
    found = file.read(kind.name, (5, 64))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(file.read("vector", (3,)), [0, 1, 2])


def test_a_tensor_that_is_missing_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = open_gguf(sample(tmp_path / "a.gguf"))
    with pytest.raises(ModelError, match="'absent' is missing"):
        file.read("absent", (1,))
    with pytest.raises(ModelError, match=r"'F32' has shape \(5, 64\), expected \(64, 5\)"):
        file.read("F32", (64, 5))


def test_a_type_of_tensor_that_is_not_read_is_named_with_a_way_out(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.MXFP4
    file = open_gguf(sample(tmp_path / "a.gguf", [*KINDS, kind]))
    np.testing.assert_array_equal(file.read("F32", (5, 64)), matrix(0))
    with pytest.raises(ModelError, match=r"is stored as MXFP4, .* F32, F16, Q4_0, .*IQ4_XS, BF16\. .*llama_cpp"):
        file.read("MXFP4", (5, 64))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"GGUF", "ends within its header"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(50), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(50), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "ends within its header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "ends within its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, (1 << 64) - 1), "ends within its header"),
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 60), "ends within its header"),
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 0, 1 << 60), "ends within its header"),
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "list of lists"),
        (b"GGUF" + struct.pack("<IQQQcIQ", 3, 0, 1, 1, b"k", 99, 1), "type 99"),
        (b"GGUF" + struct.pack("<IQQQcIQ", 3, 1, 0, 1, b"t", 77, 1), "77 dimensions"),
        (b"GGUF" + struct.pack("<IQQQcIQIQ", 3, 1, 0, 1, b"t", 1, 0, 0, 0), "size 0"),
        (
            b"GGUF" + struct.pack("<IQQQcIQIQ", 3, 1, 0, 1, b"t", 1, 1 << 62, 0, 0),
            "not complete: 't' ends",
        ),
        (b"GGUF" + struct.pack("<IQQQcIQIQ", 3, 1, 0, 1, b"t", 1, 33, 8, 0), "multiple of 32"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=what) as caught:
        open_gguf(path)
    assert str(path) in caught.value.detail


def test_paths_that_are_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model file"):
        open_gguf(tmp_path / "absent.gguf")
    with pytest.raises(ModelError, match="not a file"):
        open_gguf(tmp_path)
    with pytest.raises(ModelError, match="null byte"):
        open_gguf(Path("a\0b"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a file"):
        open_gguf(tmp_path / "pipe")


def test_every_truncation_is_noticed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cut.gguf"
    padding = len(content) - max(content.rindex(struct.pack("<f", 2.0)) + 4, 0)
    for length in range(len(content) - padding):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError):
            open_gguf(path)


@given(data=st.data())
def test_flipped_bytes_never_do_more_than_raise_a_model_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flipped") / "broken.gguf"
    path.write_bytes(broken)
    try:
        file = open_gguf(path)
        summary_of(file)
        read_everything(file)
    except ModelError as error:
        assert str(path) in error.detail
    finally:
        path.unlink()


def test_nothing_but_the_wanted_tensors_is_read_into_memory(tmp_path: Path) -> None:
    file = open_gguf(sample(tmp_path / "a.gguf"))
    found = file.read("F32", (5, 64))
    assert not np.shares_memory(found, file.data)
    assert found.flags.writeable
    assert not file.data.flags.writeable


def test_the_bundled_model_reads_as_the_gguf_package_reads_it() -> None:
    path = Path(__file__).parents[3] / "worker/bundled/model.gguf"
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    for tensor in theirs.tensors:
        expected = quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(ours.read(tensor.name, expected.shape), expected)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.chat_template"):
        assert ours.metadata[key] == theirs.fields[key].contents()
