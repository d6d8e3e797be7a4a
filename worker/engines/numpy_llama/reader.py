"""What a GGUF file says of its vocabulary and chat template, read without its weights."""

from __future__ import annotations

from pathlib import Path

from worker.engines.base import EngineSpec
from worker.engines.gguf.file import Gguf, open_gguf
from worker.engines.numpy_llama.tokenizer import load_tokenizer
from worker.engines.numpy_llama.weights import refuse_other_models
from worker.engines.prompt.chat import ChatTemplate, choose_template, named_templates
from worker.engines.prompt.reader import ModelReader


def read(spec: EngineSpec) -> ModelReader:
    """Read the GGUF file `spec.model`, which must be given. Raises ModelError for one that cannot be read."""
    assert spec.model is not None, "choose() resolves the bundled model"
    reader = reader_of(open_gguf(Path(spec.model)), spec)
    reader.warm_up()
    return reader


def reader_of(file: Gguf, spec: EngineSpec) -> ModelReader:
    """Return the reader of a file that is open."""
    refuse_other_models(file)
    vocabulary = load_tokenizer(file)
    template = spec.chat_template or choose_template(named_templates(file.metadata))
    bos, end = vocabulary.name(vocabulary.bos_id), vocabulary.name(vocabulary.end_id)
    return ModelReader(vocabulary, ChatTemplate(template, bos_token=bos, eos_token=end))
