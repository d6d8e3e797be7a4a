"""What a model's folder says of its vocabulary and chat template. Imports neither torch nor CUDA."""

from __future__ import annotations

import sys
from pathlib import Path

from worker.engines.base import EngineSpec
from worker.engines.exllamav2.folder import Folder
from worker.engines.exllamav2.vocabulary import FolderVocabulary
from worker.engines.prompt.chat import ChatTemplate, choose_template
from worker.engines.prompt.reader import ModelReader


def read(spec: EngineSpec) -> ModelReader:
    """Read the folder `spec.model`. Raises ModelError for one that is no model, or has no tokenizer that can be read.

    The width of the logits is known only after loading: `Bounds` have it.
    """
    assert spec.model is not None, "the bundled model is no folder"
    reader = reader_of(Folder(Path(spec.model)), spec, rows=sys.maxsize)
    reader.warm_up()
    return reader


def reader_of(folder: Folder, spec: EngineSpec, rows: int) -> ModelReader:
    """Return the reader of a folder whose model has logits of `rows` tokens."""
    template = spec.chat_template or choose_template(folder.chat_templates())
    bos, eos = folder.token_name("bos_token"), folder.token_name("eos_token")
    return ModelReader(FolderVocabulary(folder, rows), ChatTemplate(template, bos_token=bos, eos_token=eos))
