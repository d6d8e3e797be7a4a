"""What llama.cpp says of a model's vocabulary and chat template: the file is mapped, and no context is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker.engines.base import EngineSpec
from worker.engines.llama_cpp.library import LlamaVocabulary, library, load_model
from worker.engines.prompt.chat import ChatTemplate, choose_template, named_templates
from worker.engines.prompt.reader import ModelReader
from worker.errors import ModelError


def read(spec: EngineSpec) -> ModelReader:
    """Map the GGUF file `spec.model`, which must be given. Raises ModelError for one that cannot be read."""
    assert spec.model is not None, "choose() resolves the bundled model"
    path = Path(spec.model)
    model = load_model(library(), path, lambda _progress: None)
    try:
        reader = reader_of(model, spec)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise ModelError(f"{path.name} cannot be read: {error}") from error
    reader.warm_up()
    return reader


def reader_of(model: Any, spec: EngineSpec) -> ModelReader:
    """Return the reader of a model that is loaded, which lives on with it."""
    vocabulary = LlamaVocabulary(model)
    template = spec.chat_template or choose_template(named_templates(model.metadata()))
    bos = vocabulary.name(vocabulary.bos_id)
    return ModelReader(vocabulary, ChatTemplate(template, bos_token=bos, eos_token=vocabulary.eos_name))
