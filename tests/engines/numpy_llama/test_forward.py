"""The forward pass: the logits of an independent oracle, however the tokens are cut into batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines.models import Reference, Sizes, ignore_progress, random_weights, same_bits, stored, write_model
from worker.engines.gguf.file import open_gguf
from worker.engines.numpy_llama.forward import GROUP_TOKENS, QUERIES_MAX, Chunk, Forward, plan_groups
from worker.engines.numpy_llama.kv_cache import PAGE_TOKENS, KvCache
from worker.engines.numpy_llama.weights import load_weights

SLOTS = 6
SIZES = [
    Sizes(),
    Sizes(tied=False, layers=1),
    Sizes(heads=4, kv_heads=4, head_dim=16, layers=1),
    Sizes(hidden=128, heads=8, kv_heads=1, head_dim=64, ffn=96, layers=1),
    Sizes(hidden=2048, heads=2, kv_heads=2, head_dim=8, ffn=32, layers=1, freq_base=500_000.0, eps=1e-6),
]


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, Sizes().vocab, count)]


def forward(path: Path, sizes: Sizes) -> Forward:
    weights = load_weights(open_gguf(path), ignore_progress)
    cache = KvCache(sizes.layers, SLOTS, sizes.kv_heads, sizes.context, sizes.head_dim)
    return Forward(weights, cache, sizes.context)


def logits(model: Forward, *chunks: Chunk) -> np.ndarray:
    return model.logits(model(chunks))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, float(np.abs(expected).max())))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.gguf", Sizes(), random_weights(Sizes()))


@pytest.fixture
def model(model_path: Path) -> Forward:
    return forward(model_path, Sizes())


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(Sizes(), random_weights(Sizes()))


# ---- the oracle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_logits_of_every_position(tmp_path: Path, sizes: Sizes) -> None:
    weights = random_weights(sizes)
    ids = tokens(80)
    expected = Reference(sizes, weights).logits(ids)
    one_by_one = forward(write_model(tmp_path / "m.gguf", sizes, weights), sizes)
    found = [logits(one_by_one, Chunk(1, position, [token]))[0] for position, token in enumerate(ids)]
    assert_close(np.array(found), expected)
    at_once = forward(tmp_path / "m.gguf", sizes)
    assert_close(logits(at_once, Chunk(4, 0, ids))[0], expected[-1])


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_logits_of_stored_types(tmp_path: Path, kind: str) -> None:
    of_file = GGMLQuantizationType[kind]
    weights = random_weights(Sizes())
    path = write_model(tmp_path / "m.gguf", Sizes(), weights, of_file)
    expected = Reference(Sizes(), stored(weights, of_file)).logits(tokens(40))
    assert_close(logits(forward(path, Sizes()), Chunk(0, 0, tokens(40)))[0], expected[-1])


def test_llama_3_scaling_of_positions(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, Sizes().head_dim // 2, dtype=np.float32)
    weights = random_weights(Sizes())
    path = write_model(tmp_path / "m.gguf", Sizes(), {**weights, "rope_freqs.weight": factors})
    expected = Reference(Sizes(), weights, factors).logits(tokens(40))
    assert_close(logits(forward(path, Sizes()), Chunk(0, 0, tokens(40)))[0], expected[-1])


@pytest.mark.parametrize("keys", [("scaling.type", "scaling.factor"), ("scale_linear",)])
def test_linear_scaling_of_positions(tmp_path: Path, keys: tuple[str, ...]) -> None:
    values = {"scaling.type": (GGUFValueType.STRING, "linear")}
    metadata = {f"llama.rope.{key}": values.get(key, (GGUFValueType.FLOAT32, 4.0)) for key in keys}
    weights = random_weights(Sizes())
    path = write_model(tmp_path / "m.gguf", Sizes(), weights, metadata=metadata)
    expected = Reference(Sizes(), weights, np.full(Sizes().head_dim // 2, 4, np.float32)).logits(tokens(40))
    assert_close(logits(forward(path, Sizes()), Chunk(0, 0, tokens(40)))[0], expected[-1])


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 129, 300, Sizes().context])
def test_logits_at_the_edges_of_pages_and_of_the_context(model: Forward, reference: Reference, length: int) -> None:
    ids = tokens(length)
    assert_close(logits(model, Chunk(2, 0, ids))[0], reference.logits(ids)[-1])


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1], [2], [7], [64], [65], [100, 1, 33], [QUERIES_MAX * 2 + 1]])
def test_a_prompt_may_be_cut_anywhere(model: Forward, reference: Reference, sizes: list[int]) -> None:
    ids = tokens(200)
    expected = reference.logits(ids)
    position, number = 0, 0
    while position < len(ids):
        piece = ids[position : position + sizes[number % len(sizes)]]
        found = logits(model, Chunk(3, position, piece))[0]
        position, number = position + len(piece), number + 1
        assert_close(found, expected[position - 1])


@pytest.fixture(scope="module")
def expected(reference: Reference) -> dict[int, np.ndarray]:
    return {slot: reference.logits(tokens(150, seed=slot)) for slot in range(SLOTS)}


@settings(max_examples=30)
@given(data=st.data())
def test_sequences_in_one_batch_are_as_if_alone(
    model_path: Path, expected: dict[int, np.ndarray], data: st.DataObject
) -> None:
    model = forward(model_path, Sizes())
    slots = data.draw(st.permutations(range(SLOTS)))[: data.draw(st.integers(1, SLOTS))]
    texts = {slot: tokens(150, seed=slot)[: data.draw(st.integers(1, 150))] for slot in slots}
    done = dict.fromkeys(slots, 0)
    while any(done[slot] < len(texts[slot]) for slot in slots):
        live = [slot for slot in slots if done[slot] < len(texts[slot])]
        chosen = data.draw(st.lists(st.sampled_from(live), min_size=1, unique=True))
        sizes = {slot: data.draw(st.sampled_from([1, 1, 2, 30, 70])) for slot in chosen}
        chunks = [Chunk(slot, done[slot], texts[slot][done[slot] : done[slot] + sizes[slot]]) for slot in chosen]
        for slot, chunk, row in zip(chosen, chunks, logits(model, *chunks), strict=True):
            done[slot] += len(chunk.ids)
            assert_close(row, expected[slot][done[slot] - 1])


def test_a_copied_prefix_is_as_good_as_a_computed_one(model: Forward, reference: Reference) -> None:
    ids, other = tokens(100), tokens(30, seed=1)
    model([Chunk(0, 0, ids)])
    model._cache.copy(0, 5, 70)
    found = logits(model, Chunk(5, 70, other))[0]
    assert_close(found, reference.logits(ids[:70] + other)[-1])
    assert_close(logits(model, Chunk(0, 100, other))[0], reference.logits(ids + other)[-1])


def test_what_an_earlier_sequence_left_in_a_slot_is_not_seen(model: Forward, reference: Reference) -> None:
    model([Chunk(slot, 0, tokens(300, seed=9)) for slot in range(SLOTS)])
    short, long = tokens(10), tokens(90, seed=1)
    found = logits(model, Chunk(0, 0, short), Chunk(1, 0, long))
    assert_close(found[0], reference.logits(short)[-1])
    assert_close(found[1], reference.logits(long)[-1])
    found = logits(model, Chunk(1, 90, [5]), Chunk(0, 10, [6]))
    assert_close(found[0], reference.logits([*long, 5])[-1])
    assert_close(found[1], reference.logits([*short, 6])[-1])


@same_bits
@pytest.mark.parametrize("sizes", SIZES[:4], ids=str)
def test_logits_are_the_same_bits_however_they_are_computed(tmp_path: Path, sizes: Sizes) -> None:
    ids = tokens(400)
    path = write_model(tmp_path / "m.gguf", sizes, random_weights(sizes))
    alone = forward(path, sizes)
    expected = [logits(alone, Chunk(0, position, [token]))[0] for position, token in enumerate(ids)]
    rng = np.random.default_rng(0)
    crowd = forward(path, sizes)
    done = [0] * SLOTS
    for _ in range(150):
        chunks = []
        for slot in rng.permutation(SLOTS)[: rng.integers(1, SLOTS + 1)]:
            size = int(rng.choice([1, 1, 1, 5, 40]))
            if done[slot] + size <= len(ids):
                chunks.append(Chunk(int(slot), done[slot], ids[done[slot] : done[slot] + size]))
                done[slot] += size
        for chunk, row in zip(chunks, logits(crowd, *chunks) if chunks else [], strict=True):
            np.testing.assert_array_equal(row, expected[chunk.position + len(chunk.ids) - 1])
    assert min(done) > PAGE_TOKENS


def test_broken_weights_give_no_warning_and_no_numbers(tmp_path: Path) -> None:
    weights = random_weights(Sizes())
    weights["blk.0.ffn_up.weight"][3, 3] = np.inf
    weights["blk.1.attn_v.weight"][3, 3] = np.nan
    model = forward(write_model(tmp_path / "m.gguf", Sizes(), weights), Sizes())
    assert np.isnan(logits(model, Chunk(0, 0, tokens(5)), Chunk(1, 0, tokens(1)))).all()


# ---- groups of slots -------------------------------------------------------------------------------------------------

rows = st.dictionaries(st.integers(0, 63), st.integers(1, 4000), min_size=1).map(lambda found: sorted(found.items()))


@given(rows)
def test_groups_cover_every_row_once_and_only_slots_between_them(found: list[tuple[int, int]]) -> None:
    slots, lengths = [slot for slot, _ in found], [length for _, length in found]
    groups = plan_groups(slots, lengths)
    covered = [row for group in groups for row in range(group.rows.start, group.rows.stop)]
    assert covered == list(range(len(slots)))
    for group in groups:
        mine = slots[group.rows]
        assert (group.slots.start, group.slots.stop) == (mine[0], mine[-1] + 1)
        assert group.tokens == max(lengths[group.rows])
        places = [slot - mine[0] for slot in mine]
        assert (list(range(len(mine))) if group.places is None else group.places.tolist()) == places
        for place, length in zip(places, lengths[group.rows], strict=True):
            masked = 0 if group.mask is None else int(np.isneginf(group.mask[place]).sum())
            assert masked == group.tokens - length


@given(rows)
def test_grouping_never_costs_more_than_computing_each_apart(found: list[tuple[int, int]]) -> None:
    slots, lengths = [slot for slot, _ in found], [length for _, length in found]
    groups = plan_groups(slots, lengths)
    cost = sum(GROUP_TOKENS + (group.slots.stop - group.slots.start) * group.tokens for group in groups)
    assert cost <= sum(GROUP_TOKENS + length for length in lengths)


def test_neighbours_of_like_length_are_one_group_and_strangers_are_not() -> None:
    assert len(plan_groups(list(range(64)), [100 + slot % 5 for slot in range(64)])) == 1
    assert len(plan_groups([0, 1, 2, 3], [50, 60, 3000, 55])) == 3
    assert len(plan_groups([0, 60], [1000, 1000])) == 2
    assert plan_groups([], []) == []
