"""A model's folder, as Hugging Face lays it out: its documents, and a view of it that ExLlamaV2 reads correctly.

ExLlamaV2 ignores settings that it does not know: newer spellings of RoPE, other quantisations, unknown architectures.
Each would give a model that talks nonsense, so they are spelt the old way here, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from worker.errors import ModelError

Document: TypeAlias = dict[str, Any]

ROPE_TYPES = frozenset({"linear", "su", "longrope", "yarn", "llama3", "mrope"})
QUANTISATIONS = frozenset({"exl2", "gptq"})


class Folder:
    """The documents of a model's folder. Raises ModelError for one that is no model, or one of an unsupported kind."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ModelError(f"{path} is no folder, and ExLlamaV2 runs models in folders (EXL2, GPTQ, safetensors).")
        self.path = path
        self.config = self._document("config.json", needed=True)
        self.generation = self._document("generation_config.json")
        self.tokenizer = self._document("tokenizer_config.json")
        if not (path / "tokenizer.json").is_file():
            raise ModelError(f"{path} has no tokenizer.json. Save its tokenizer in that form.")
        self.weights = sorted(path.glob("*.safetensors"))
        if not self.weights:
            raise ModelError(f"{path} has no *.safetensors file.")
        quantised = self.config.get("quantization_config") or {}
        self.quantisation = str(quantised.get("quant_method", "none"))
        if quantised and self.quantisation not in QUANTISATIONS:
            raise ModelError(f"{path} is quantised as {self.quantisation}. It must be EXL2, GPTQ or plain.")

    @property
    def weights_bytes(self) -> int:
        """Size of all weight files."""
        return sum(file.stat().st_size for file in self.weights)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a sequence according to either configuration."""
        found: set[int] = set()
        for document in (self.config, self.config.get("text_config") or {}, self.generation):
            ids = document.get("eos_token_id")
            found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
        return frozenset(found)

    def chat_templates(self) -> dict[str, str]:
        """Return the model's own templates by their names: one alone is `default`."""
        file = self.path / "chat_template.jinja"
        if file.is_file():
            return {"default": file.read_text(encoding="utf-8-sig")}
        template = self.tokenizer.get("chat_template")
        if isinstance(template, list):
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        else:
            named = {"default": template}
        return {name: text for name, text in named.items() if isinstance(name, str) and isinstance(text, str) and text}

    def token_name(self, key: str) -> str:
        """Return the text of a special token by its key (`bos_token`), "" if the folder names none."""
        token = self.tokenizer.get(key)
        if isinstance(token, dict):
            token = token.get("content")
        return token if isinstance(token, str) else ""

    @contextmanager
    def readable(self) -> Iterator[Path]:
        """Yield a path that ExLlamaV2 reads correctly: the folder, or temporary links to it with another config."""
        config = legacy_config(self.config, self.path)
        if config == self.config:
            yield self.path
            return
        with TemporaryDirectory(prefix="jobwire-model-") as name:
            view = Path(name)
            for file in self.path.iterdir():
                if file.name != "config.json":
                    (view / file.name).symlink_to(file.resolve())
            (view / "config.json").write_text(json.dumps(config), encoding="utf-8")
            yield view

    def _document(self, name: str, *, needed: bool = False) -> Document:
        file = self.path / name
        if not file.is_file():
            if needed:
                raise ModelError(f"{self.path} has no {name}: it is not a model's folder.")
            return {}
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
        if not isinstance(document, dict):
            raise ModelError(f"{file} is not an object.")
        return document


def legacy_config(config: Document, path: Path) -> Document:
    """Return a config with RoPE as it was written before transformers 5; unchanged if it is written so already.

    Raises ModelError for RoPE that ExLlamaV2 does not have, and for old and new keys that contradict each other.
    """
    changed = _legacy_rope(config, path)
    text = config.get("text_config")
    if isinstance(text, dict):
        changed = {**changed, "text_config": _legacy_rope(text, path)}
    return changed


def _legacy_rope(config: Document, path: Path) -> Document:
    new = config.get("rope_parameters")
    if new is None:
        _check_scaling(config.get("rope_scaling"), path)
        return config
    if not isinstance(new, dict) or any(isinstance(value, dict) for value in new.values()):
        raise ModelError(f"{path}: its rope_parameters differ from layer to layer, which ExLlamaV2 has not.")
    scaling = {key: value for key, value in new.items() if key not in ("rope_theta", "partial_rotary_factor")}
    # Both spellings of one thing are an error to ExLlamaV2.
    kind = scaling.pop("type", None) or scaling.get("rope_type", "default")
    old: Document = {"rope_scaling": None if kind == "default" else {**scaling, "rope_type": kind}}
    old |= {key: new[key] for key in ("rope_theta", "partial_rotary_factor") if key in new}
    _check_scaling(old["rope_scaling"], path)
    for key, value in old.items():
        if config.get(key) is not None and _plain(config[key]) != _plain(value):
            raise ModelError(f"{path}: {key} is {config[key]}, but rope_parameters say {value}.")
    unchanged = all(_plain(config.get(key)) == _plain(value) for key, value in old.items())
    return config if unchanged else {**config, **old}


def _plain(value: object) -> object:
    """Return a value in one spelling, so that equal ones compare equal."""
    if isinstance(value, dict):
        named = {("rope_type" if key == "type" else key): entry for key, entry in value.items()}
        return None if named.get("rope_type") == "default" else named
    return value


def _check_scaling(scaling: object, path: Path) -> None:
    if not isinstance(scaling, dict):
        return
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default" and kind not in ROPE_TYPES:
        raise ModelError(f"{path}: ExLlamaV2 has no RoPE scaling of type {kind!r}.")
