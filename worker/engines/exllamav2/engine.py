"""The engine port over ExLlamaV2's dynamic generator: admit is enqueue, step is iterate, leave is cancel.

An exception in `iterate` leaves the generator's page table wrong for every job in it. Then the job that caused it, if
one did, breaks; the table is made anew, and the others are replayed from their tokens, which are all kept here. Events
from before an exception stand, and none is reported twice. A sequence is replayed once, and never after a fault of CUDA
itself: such exceptions are raised and end the process.

Pages are allocated for a slice of the output at first, and one by one after that. A sequence that needs one when none
is free is paused: its pages become free for others, its state is kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from worker.engines.base import (
    Capacity,
    EngineInfo,
    EngineSpec,
    Forms,
    OnLoad,
    Paused,
    Prepared,
    StepEvent,
)
from worker.engines.exllamav2.folder import Folder
from worker.engines.exllamav2.job import JobFault, Plan, SequenceJob, Step, page_names
from worker.engines.exllamav2.model import Loaded, load_model
from worker.engines.exllamav2.options import PAGE_TOKENS, Options, read_options
from worker.engines.exllamav2.reader import reader_of
from worker.engines.output.sequence import Sequence
from worker.engines.prompt.reader import ModelReader

logger = logging.getLogger(__name__)


def load_engine(spec: EngineSpec, on_load: OnLoad) -> ExLlamaV2Engine:
    """Load the folder `spec.model`. Raises ModelError, see worker.engines.exllamav2."""
    assert spec.model is not None, "choose() resolves the bundled model"
    options = read_options(spec.options)
    folder = Folder(Path(spec.model))
    loaded = load_model(folder, spec, options, on_load)
    return ExLlamaV2Engine(folder, spec, options, loaded)


@dataclass
class _Running:
    """A sequence in the batch and its job, which a replay replaces."""

    job: SequenceJob
    replayed: bool = False


class ExLlamaV2Engine:
    """The engine port. Made by `load_engine`; everything but sampling happens in the thread that calls."""

    def __init__(self, folder: Folder, spec: EngineSpec, options: Options, loaded: Loaded) -> None:
        self._loaded = loaded
        self._generator = loaded.generator
        self._ahead = options.ahead
        self._slice_tokens = options.slice_tokens
        self._reader = reader_of(folder, spec, loaded.rows)
        self._step = Step()
        self._running: dict[str, _Running] = {}  # in order of admission
        self._paused: dict[str, Sequence] = {}
        self._info = EngineInfo(
            engine="exllamav2",
            model=folder.path.name,
            device=", ".join(loaded.devices),
            context_tokens=loaded.context_tokens,
            vocab_size=self._reader.vocabulary.size,
            parameters=loaded.parameters,
            slots=loaded.slots,
            weights_bytes=folder.weights_bytes,
            has_chat_template=self._reader.has_template,
            kv_tokens_total=self._pages_total * PAGE_TOKENS,
            rewinds=not self._ahead,
            details={
                "attention": loaded.attention,
                "cache": options.cache,
                "cache_tokens": str(loaded.cache_tokens),
                "quantisation": folder.quantisation,
                "speculation": "draft model" if options.draft_model else "n-gram" if options.ngram else "none",
            },
        )
        logger.info("attention: %s, cache: %s, %d tokens", loaded.attention, options.cache, loaded.cache_tokens)

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine, constant after loading."""
        return self._info

    @property
    def reader(self) -> ModelReader:
        """The reader of this model."""
        return self._reader

    @property
    def forms(self) -> Forms:
        """The compiled forms."""
        return self._reader.guides

    def adopt(self, prepared: Prepared) -> Prepared:
        """Return it with the output tokens of a slice, and the names of the pages that its prompt fills."""
        # Tokens may have to be removed from its pages: they stay its own alone only if it is never paused.
        slice_tokens = 0 if prepared.generation.sampling.banned_strings else self._slice_tokens
        return msgspec.structs.replace(
            prepared, slice_tokens=slice_tokens, prompt_pages=page_names(prepared.prompt_ids)
        )

    def fits(self, prepared: Prepared) -> bool:
        """Return whether there are pages for a sequence. Pages of its prompt that others hold are shared."""
        shared = sum(name in self._generator.referenced_pages for name in prepared.prompt_pages)
        return self.capacity().fits(prepared.tokens_reserved - shared * PAGE_TOKENS)

    def capacity(self) -> Capacity:
        """Return the pages that no sequence holds; one that several share counts once.

        With speculation a page is held back, for the tokens that are guessed beyond a budget.
        """
        slots, total = self._info.slots, self._pages_total
        free = max(len(self._generator.unreferenced_pages) - (self._generator.max_pages - total), 0)
        return Capacity(slots - len(self._running), slots, free * PAGE_TOKENS, total * PAGE_TOKENS, PAGE_TOKENS)

    @property
    def _pages_total(self) -> int:
        """Pages that sequences can fill."""
        return int(self._generator.max_pages) - (1 if self._ahead else 0)

    def admit(self, prepared: Prepared) -> int:
        """Allocate the first pages of a sequence, be it new or paused; return how many of its tokens were cached."""
        assert self.fits(prepared), "admitted without room"
        assert prepared.lease not in self._running, "admitted twice"
        sequence = self._paused.pop(prepared.lease, None) or self._sequence(prepared)
        assert len(sequence.tokens) == prepared.tokens_present
        plan = Plan(sequence, prepared.tokens_reserved, len(sequence.tokens), self._info.vocab_size, self._ahead)
        job = SequenceJob(plan, self._step, 0)
        self._running[prepared.lease] = _Running(job)
        cached = job.reported = self._start(job)
        return cached

    def step(self, prefill_tokens_max: int) -> list[StepEvent]:
        """Advance every sequence: prompt tokens in order of admission within the limit, a token for those in decode.

        Raises errors that cannot be recovered from: the engine is not used afterwards.
        """
        if not self._running:
            return []
        self._step.prefill_tokens = prefill_tokens_max
        try:
            self._generator.iterate()
        except JobFault as fault:
            assert isinstance(fault.__cause__, Exception)
            self._recover(fault.__cause__, fault.job)
        except Exception as error:
            self._recover(error, None)
        for lease, row in list(self._running.items()):
            if row.job.sequence.finished:
                del self._running[lease]
            elif not row.job.has_room():
                self._pause(lease)
        events = self._step.events.copy()
        self._step.events.clear()
        return events

    def leave(self, lease: str) -> None:
        """Forget a sequence. Its pages are kept for prompts that begin alike until others need them."""
        self._paused.pop(lease, None)
        row = self._running.pop(lease, None)
        if row is not None:
            self._generator.cancel(row.job)

    def close(self) -> None:
        """Free the GPU's memory."""
        self._running.clear()
        self._paused.clear()
        self._loaded.close()

    def _sequence(self, prepared: Prepared) -> Sequence:
        return Sequence(prepared, self._reader.vocabulary, self._reader.guides)

    def _pause(self, lease: str) -> None:
        """Remove a sequence from the batch, and keep its state."""
        job = self._running.pop(lease).job
        self._generator.cancel(job)
        self._paused[lease] = job.sequence
        self._step.events.append(Paused(lease, job.sequence.position))

    def _start(self, job: SequenceJob) -> int:
        """Put a job into the batch; return how many of its tokens the cache had."""
        self._generator.enqueue(job)
        self._generator.iterate_start_jobs([])
        assert job in self._generator.active_jobs, "the generator has no room where we counted some"
        with torch.inference_mode():
            return job.adopt()

    def _recover(self, error: Exception, culprit: SequenceJob | None) -> None:
        """Break the culprit and replay the others, or raise the error."""
        if _is_final(error):
            raise error
        rows = [row for row in self._running.values() if not row.job.sequence.finished and row.job is not culprit]
        if culprit is None and any(row.replayed for row in rows):
            raise error
        logger.error("a step failed, %d sequences are replayed", len(rows), exc_info=error)
        if isinstance(error, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
        if culprit is not None:
            self._step.events.append(culprit.sequence.fail(error))
        generator = self._generator
        generator.active_jobs.clear()
        generator.pending_jobs.clear()
        generator.reset_page_table()
        for row in rows:
            row.replayed = row.replayed or culprit is None
            row.job = SequenceJob(row.job.plan, self._step, row.job.reported)
            self._start(row.job)


def _is_final(error: Exception) -> bool:
    """Return whether CUDA has failed in a way that it does not recover from in this process."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error) or "CUBLAS" in str(error)
