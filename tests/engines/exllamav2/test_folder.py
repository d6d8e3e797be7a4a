"""Folders of models: what is read from them, what is spelt the old way, and what is refused. Needs none of CUDA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from worker.engines.exllamav2.folder import Folder, legacy_config
from worker.errors import ModelError

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WHERE = Path("model")


def folder(path: Path, **documents: Any) -> Path:
    """Write a folder with what every model has, and these JSON documents by their names without .json."""
    path.mkdir(exist_ok=True)
    contents = {"config": {}, "tokenizer": {}, **documents}
    for name, document in contents.items():
        if document is not None:
            (path / f"{name}.json").write_text(document if isinstance(document, str) else json.dumps(document))
    (path / "model.safetensors").write_bytes(b"x" * 100)
    return path


# ---- RoPE ------------------------------------------------------------------------------------------------------------


def test_the_new_spelling_of_rope_becomes_the_old_one() -> None:
    new = {"hidden_size": 8, "rope_parameters": {"rope_theta": 500000.0, **LLAMA3}}
    old = legacy_config(new, WHERE)
    assert (old["rope_theta"], old["rope_scaling"], old["hidden_size"]) == (500000.0, LLAMA3, 8)
    assert "rope_theta" not in new and "rope_theta" not in old["rope_scaling"]


def test_plain_rope_needs_its_base_alone() -> None:
    old = legacy_config({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, WHERE)
    assert (old["rope_theta"], old["rope_scaling"]) == (7.0, None)


def test_part_of_a_head_may_be_turned() -> None:
    parameters = {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.5}
    assert legacy_config({"rope_parameters": parameters}, WHERE)["partial_rotary_factor"] == 0.5


def test_the_text_part_of_a_larger_model_is_spelt_the_old_way_too() -> None:
    text = {"rope_parameters": {"rope_theta": 9.0, "rope_type": "linear", "factor": 2.0}}
    old = legacy_config({"text_config": text, "vision_config": {}}, WHERE)["text_config"]
    assert (old["rope_theta"], old["rope_scaling"]) == (9.0, {"rope_type": "linear", "factor": 2.0})


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_theta": 10000.0, "rope_scaling": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5.0, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        {"rope_theta": 5.0, "rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 5.0, **LLAMA3}},
        {"rope_theta": 5.0, "rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 5.0}},
    ],
)
def test_what_is_right_already_stays_as_it_is(config: dict[str, Any]) -> None:
    assert legacy_config(config, WHERE) is config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, "rope_theta is 1.0, but rope_parameters say 2.0"),
        ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 2.0}}, "rope_scaling is"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 2.0}}}, "differ from layer to layer"),
        ({"rope_parameters": [1]}, "differ from layer to layer"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "no RoPE scaling of type 'dynamic'"),
        ({"rope_parameters": {"rope_theta": 2.0, "rope_type": "proportional"}}, "type 'proportional'"),
        ({"text_config": {"rope_scaling": {"rope_type": "new"}}}, "type 'new'"),
    ],
)
def test_what_would_be_read_wrong_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        legacy_config(config, WHERE)


def test_a_folder_that_needs_it_is_seen_through_links_with_another_config(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", config={"rope_parameters": {"rope_theta": 4.0}})
    with Folder(path).readable() as view:
        assert view != path and json.loads((view / "config.json").read_text())["rope_theta"] == 4.0
        assert (view / "model.safetensors").read_bytes() == b"x" * 100
        assert sorted(file.name for file in view.iterdir()) == sorted(file.name for file in path.iterdir())
    assert not view.exists() and json.loads((path / "config.json").read_text()) == {
        "rope_parameters": {"rope_theta": 4.0}
    }


def test_a_folder_that_needs_nothing_is_read_as_it_is(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    with Folder(path).readable() as view:
        assert view == path


# ---- what is in it ---------------------------------------------------------------------------------------------------


def test_every_end_token_of_any_document_counts(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "m",
        config={"eos_token_id": 2, "text_config": {"eos_token_id": [3, 4]}},
        generation_config={"eos_token_id": [5]},
    )
    assert Folder(path).eos_ids == {2, 3, 4, 5}
    assert Folder(folder(tmp_path / "n")).eos_ids == frozenset()


def test_the_template_is_taken_from_its_file_or_from_the_tokenizer(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    each = {"tool_use": "T", "default": "D"}
    for given, expected in ((None, {}), ("S", {"default": "S"}), (named, each), ([], {}), (7, {}), ("", {})):
        path = folder(tmp_path / "m", tokenizer_config={"chat_template": given})
        assert Folder(path).chat_templates() == expected
    (path / "chat_template.jinja").write_text("{{ ünd }}", encoding="utf-8")
    assert Folder(path).chat_templates() == {"default": "{{ ünd }}"}


def test_special_tokens_are_named_as_text_or_as_objects(tmp_path: Path) -> None:
    model = Folder(folder(tmp_path / "m", tokenizer_config={"bos_token": {"content": "<s>"}, "eos_token": "</s>"}))
    assert [model.token_name(f"{name}_token") for name in ("bos", "eos", "pad")] == ["<s>", "</s>", ""]


def test_weights_are_counted(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    (path / "other.safetensors").write_bytes(b"x" * 11)
    assert Folder(path).weights_bytes == 111


@pytest.mark.parametrize(("method", "runs"), [("exl2", True), ("gptq", True), ("fp8", False), ("awq", False)])
def test_quantisations(tmp_path: Path, method: str, runs: bool) -> None:
    path = folder(tmp_path / "m", config={"quantization_config": {"quant_method": method}})
    if runs:
        assert Folder(path).quantisation == method
    else:
        with pytest.raises(ModelError, match=f"quantised as {method}"):
            Folder(path)


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing is no folder"):
        Folder(tmp_path / "nothing")
    whole = folder(tmp_path / "m")
    for name, words in (
        ("model.safetensors", "no .*safetensors"),
        ("tokenizer.json", "no tokenizer.json"),
        ("config.json", "no config.json"),
    ):
        (whole / name).unlink()
        with pytest.raises(ModelError, match=words):
            Folder(whole)


@pytest.mark.parametrize("content", ["", "{", "[]", "7"])
def test_a_document_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        Folder(folder(tmp_path / "m", config=content))
