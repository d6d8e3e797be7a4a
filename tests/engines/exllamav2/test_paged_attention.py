"""Attention over pages, against plain float64 arithmetic, token by token."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import pytest

from tests.engines.exllamav2 import cpu

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

import torch
from torch import Tensor

from worker.engines.exllamav2 import paged_attention
from worker.engines.exllamav2.paged_attention import PagedAttention

PAGE = 256
PAGES = 12
DIM = 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


class Case:
    """Sequences of these lengths in shuffled pages; whatever no sequence has written is not a number."""

    def __init__(
        self, lengths: list[int], queries: int, heads: int, kv_heads: int, *, dim: int = DIM,
        unwritten: float = float("nan"), half: bool = False,
    ) -> None:  # fmt: skip
        dtype = torch.float16 if half else torch.float32
        self.lengths, self.queries = lengths, queries
        self.q = random(len(lengths), queries, heads, dim, seed=1).to(dtype)
        longest = max(-(-length // PAGE) for length in lengths)
        order = torch.randperm(PAGES, generator=torch.Generator().manual_seed(2)).tolist()
        self.table = torch.zeros((len(lengths), longest), dtype=torch.int32)
        self.keys, self.values = (torch.full((PAGES, PAGE, kv_heads, dim), unwritten, dtype=dtype) for _ in range(2))
        self.sequences: list[tuple[Tensor, Tensor]] = []
        for row, length in enumerate(lengths):
            keys, values = (random(length, kv_heads, dim, seed=seed + row).to(dtype) for seed in (10, 20))
            self.sequences.append((keys, values))
            for number in range(-(-length // PAGE)):
                page = order.pop()
                self.table[row, number] = page
                for cache, source in ((self.keys, keys), (self.values, values)):
                    part = source[number * PAGE : (number + 1) * PAGE]
                    cache[page, : len(part)] = part

    def tensor(self, lengths: list[int]) -> Tensor:
        return torch.tensor(lengths, dtype=torch.int32)


def reference(case: Case, scale: float, window: int = -1, softcap: float = 0.0) -> Tensor:
    """What each query sees of its own sequence: itself and what is before it, at most `window` before."""
    out = torch.zeros(case.q.shape, dtype=torch.float64)
    for row, (keys, values) in enumerate(case.sequences):
        group = case.q.shape[2] // keys.shape[1]
        for number in range(case.queries):
            end = len(keys) - case.queries + number + 1
            begin = 0 if window < 0 else max(end - 1 - window, 0)
            for head in range(case.q.shape[2]):
                seen = keys[begin:end, head // group].double()
                scores = seen @ case.q[row, number, head].double() * scale
                if softcap:
                    scores = torch.tanh(scores / softcap) * softcap
                out[row, number, head] = torch.softmax(scores, 0) @ values[begin:end, head // group].double()
    return out


CASES = [
    ([1], 1, 2, 2),
    ([5, 256, 257, 600], 1, 4, 2),
    ([300], 40, 4, 1),
    ([256, 511], 3, 2, 1),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("window", "softcap"), [(-1, 0.0), (100, 0.0), (-1, 5.0), (7, 2.0)])
def test_the_portable_backend(case: tuple[list[int], int, int, int], window: int, softcap: float) -> None:
    one = Case(*case)
    out = PagedAttention("sdpa")(
        one.q, one.keys, one.values, cache_seqlens=one.tensor(one.lengths), block_table=one.table, softmax_scale=0.3,
        window_size=(window, window), softcap=softcap,
    )  # fmt: skip
    assert torch.allclose(out.double(), reference(one, 0.3, window, softcap), atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_new_keys_and_values_are_appended_behind_the_cached_ones(case: tuple[list[int], int, int, int]) -> None:
    one = Case(*case)
    before = [length - one.queries for length in one.lengths]
    new = [torch.stack([pair[kind][-one.queries :] for pair in one.sequences]) for kind in (0, 1)]
    expected = one.keys.clone(), one.values.clone()
    for row, length in enumerate(before):
        for position in range(length, length + one.queries):
            page = one.table[row, position // PAGE]
            one.keys[page, position % PAGE] = one.values[page, position % PAGE] = float("nan")
    attention = PagedAttention("sdpa")
    out = attention(
        one.q, one.keys, one.values, new[0], new[1], cache_seqlens=one.tensor(before), block_table=one.table
    )
    assert torch.allclose(out.double(), reference(one, DIM**-0.5), atol=1e-4)
    for cache, wanted in zip((one.keys, one.values), expected, strict=True):
        assert torch.equal(cache.nan_to_num(7.0), wanted.nan_to_num(7.0))


def test_lengths_that_are_counted_up_in_place_are_read_anew() -> None:
    """As the library does on the CPU between two passes of a draft model."""
    attention, lengths = PagedAttention("sdpa"), torch.tensor([3], dtype=torch.int32)
    keys, values = torch.zeros((1, PAGE, 1, DIM)), torch.zeros((1, PAGE, 1, DIM))
    for number in range(3):
        new = torch.full((1, 1, 1, DIM), number + 1.0)
        attention(
            new, keys, values, new, new, cache_seqlens=lengths, block_table=torch.zeros((1, 1), dtype=torch.int32)
        )
        lengths += 1
    assert keys[0, 2:7, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 0.0]


# ---- the arguments for kernels that only a GPU has -------------------------------------------------------------------


def from_pages(arguments: dict[str, Any], keys: Tensor, values: Tensor) -> Tensor:
    """What FlashAttention with variable lengths is documented to compute, from the arguments of a call of it."""
    out = torch.zeros(arguments["query"].shape, dtype=torch.float64)
    starts = arguments["cu_seq_q"].tolist()
    left, right = arguments["window"]
    assert right == 0, "causal"
    for row, (begin, end) in enumerate(pairwise(starts)):
        assert end - begin <= arguments["max_q"]
        used = int(arguments["seqused_k"][row])
        assert used <= arguments["max_k"]
        for number in range(begin, end):
            last = used - (end - number)
            first = 0 if left < 0 else max(last - left, 0)
            for head in range(out.shape[1]):
                kv = head // (out.shape[1] // keys.shape[-2])
                seen = slice(first, last + 1)
                scores = keys[row][seen, kv].double() @ arguments["query"][number, head].double() * arguments["scale"]
                out[number, head] = torch.softmax(scores, 0) @ values[row][seen, kv].double()
    return out


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("window", [-1, 100])
def test_torch_s_paged_kernel_is_called_as_documented(
    case: tuple[list[int], int, int, int], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    signature = inspect.signature(varlen.varlen_attn)
    if "block_table" not in signature.parameters:
        pytest.skip("this torch has no paged attention")
    one = Case(*case)

    def stand_in(*arguments: Any, **named: Any) -> Tensor:
        given = signature.bind(*arguments, **named).arguments
        given["window"] = given["window_size"]
        assert given["enable_gqa"] == (one.q.shape[2] != one.keys.shape[2])
        assert given["cu_seq_q"].dtype == given["cu_seq_k"].dtype == given["block_table"].dtype == torch.int32
        table = given["block_table"].long()
        assert given["cu_seq_k"].tolist() == [row * given["max_k"] for row in range(len(table) + 1)]
        keys, values = (given[name][table].flatten(1, 2) for name in ("key", "value"))
        return from_pages(given, keys, values).float()

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    paged = paged_attention._Paged(one.keys, one.values, one.tensor(one.lengths), one.table, (window, 0), 0.3, 0.0)
    out = paged_attention._varlen(one.q, paged)
    assert torch.allclose(out.double(), reference(one, 0.3, window), atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("window", [-1, 100])
def test_torch_s_older_kernel_is_called_with_gathered_pages(
    case: tuple[list[int], int, int, int], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Case(*case)
    schema = torch.ops.aten._flash_attention_forward.default._schema
    names = [argument.name for argument in schema.arguments]

    def stand_in(*arguments: Any, **named: Any) -> tuple[Tensor, None]:
        assert set(named) <= set(names)
        given = dict(zip(names, arguments, strict=False)) | named
        assert given["is_causal"] == (window < 0) and given["dropout_p"] == 0.0 and not given["return_debug_mask"]
        given |= {"cu_seq_q": given["cum_seq_q"], "window": (given["window_size_left"], given["window_size_right"])}
        size = given["max_k"]
        assert given["cum_seq_k"].tolist() == [row * size for row in range(len(one.lengths) + 1)]
        keys, values = (given[name].view(-1, size, *given[name].shape[1:]) for name in ("key", "value"))
        return from_pages(given, keys, values).float(), None

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", stand_in)
    paged = paged_attention._Paged(one.keys, one.values, one.tensor(one.lengths), one.table, (window, 0), 0.3, 0.0)
    out = paged_attention._gather(one.q, paged)
    assert torch.allclose(out.double(), reference(one, 0.3, window), atol=1e-4)


def test_the_best_backend_depends_on_gpu_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.version.cuda is not None or paged_attention.best_backend() == "sdpa"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    capabilities = {0: (9, 0), 1: (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert paged_attention.best_backend() == "sdpa"
    capabilities[1] = (8, 0)
    assert paged_attention.best_backend() in ("varlen", "gather")
    monkeypatch.setattr(paged_attention, "_pages_in_varlen", lambda: False)
    assert paged_attention.best_backend() == "gather"
