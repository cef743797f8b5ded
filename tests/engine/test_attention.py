"""The pieces cover exactly the visible keys, and the kernels' merge equals one softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx.engine.attention import kernels_blocked, kernels_cpu, unfused
from longctx.engine.attention.kernels_cuda import key_blocks
from longctx.engine.attention.merge import merge
from longctx.engine.attention.pieces import QueryBlock, in_blocks, query_blocks, whole
from longctx.plan.sizes import CUDNN_KEY_BLOCKS


def coverage(block: QueryBlock, at: int, keys: int) -> torch.Tensor:
    """How often each query of the block sees each key, by the masks' own definitions."""
    count = torch.zeros(block.stop - block.start, keys, dtype=torch.int)
    for piece in block.pieces:
        rows = torch.arange(block.stop - block.start).unsqueeze(1)
        width = piece.key_stop - piece.key_start
        columns = torch.arange(width).unsqueeze(0)
        if piece.mask == "full":
            seen = torch.ones(len(rows), width, dtype=torch.bool)
        elif piece.mask == "causal":
            seen = columns <= rows + width - len(rows)
        else:
            assert width == len(rows)
            seen = columns >= rows
        count[:, piece.key_start : piece.key_stop] += seen
    return count


@settings(max_examples=200, deadline=None)
@given(
    at=st.integers(0, 60),
    tokens=st.integers(1, 60),
    window=st.one_of(st.none(), st.integers(1, 70)),
    block=st.one_of(st.none(), st.integers(1, 30)),
    square=st.one_of(st.none(), st.integers(1, 30)),
    tail=st.one_of(st.none(), st.integers(1, 30)),
    joined=st.booleans(),
)
def test_pieces_cover_every_visible_key_once(
    at: int,
    tokens: int,
    window: int | None,
    block: int | None,
    square: int | None,
    tail: int | None,
    joined: bool,
) -> None:
    split = in_blocks(block) if block else whole
    blocks = list(query_blocks(at, tokens, window, split, square, tail, joined))
    visible = unfused.visible(tokens, at + tokens, at, window, torch.device("cpu"))
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == tokens
    for part in blocks:
        counted = coverage(part, at, at + tokens)
        assert torch.equal(counted, visible[part.start : part.stop].int())


@pytest.mark.parametrize(("tokens", "keys"), [(1, 1), (5, 5), (700, 700), (3, 1500), (520, 1100)])
def test_blocked_matmuls_equal_one_softmax(tokens: int, keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(4, tokens, 24, generator=generator)
    key, value = torch.randn(2, 2, keys, 24, generator=generator)
    scores = 0.3 * query @ key.repeat_interleave(2, 0).transpose(1, 2)
    visible = unfused.visible(tokens, keys, keys - tokens, None, torch.device("cpu"))
    hidden = scores.masked_fill(~visible, float("-inf"))
    for run, exact in ((kernels_blocked.full, scores), (kernels_blocked.causal, hidden)):
        out, lse = run(query, key, value, 0.3)
        expected = exact.softmax(-1) @ value.repeat_interleave(2, 0)
        assert torch.allclose(out, expected.transpose(0, 1), atol=1e-5)
        assert torch.allclose(lse, exact.logsumexp(-1).T, atol=1e-5)


@given(st.integers(0, 300_000), st.integers(0, 300_000))
def test_key_blocks_tile_the_range_with_few_sizes(start: int, length: int) -> None:
    cuts = key_blocks(start, start + length)
    assert [a for a, _ in cuts] == [start, *(b for _, b in cuts[:-1])][: len(cuts)]
    assert sum(b - a for a, b in cuts) == length
    odd = [b - a for a, b in cuts if b - a not in CUDNN_KEY_BLOCKS]
    assert len(odd) <= 1
    assert all(size < min(CUDNN_KEY_BLOCKS) for size in odd)


@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_parts_merge_to_one_softmax(heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(heads[0], 5, 16, generator=generator)
    key, value = torch.randn(2, heads[1], 40, 16, generator=generator) * 3
    parts = [
        kernels_cpu.full(query, key[:, a:b], value[:, a:b], 0.3)
        for a, b in ((0, 1), (1, 17), (17, 40))
    ]
    out, lse = merge(parts)
    group = heads[0] // heads[1]
    scores = 0.3 * query @ key.repeat_interleave(group, 0).transpose(1, 2)
    expected = scores.softmax(-1) @ value.repeat_interleave(group, 0)
    assert torch.allclose(out, expected.transpose(0, 1), atol=1e-5)
    assert torch.allclose(lse, scores.logsumexp(-1).T, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 3, 8])
@pytest.mark.parametrize("keys", [1, 511, 5000])
def test_one_query_equals_the_full_kernel_at_any_number_of_threads(
    threads: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(keys)
    query = torch.randn(8, 1, 32, generator=generator)
    key, value = torch.randn(2, 2, keys, 32, generator=generator)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ours = kernels_cpu.one_query(query, key, value, 0.2)
    plain = kernels_cpu.full(query, key, value, 0.2)
    for mine, reference in zip(ours, plain, strict=True):
        assert mine.shape == reference.shape
        assert torch.allclose(mine, reference, atol=1e-5)


def test_a_kernel_without_shared_kv_heads_is_worked_around(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query, key, value = torch.randn(8, 6, 32), torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    shared = kernels_cpu.full(query, key, value, 0.2)
    monkeypatch.setattr(kernels_cpu, "_flash_shares_kv_heads", lambda: False)
    folded = kernels_cpu.full(query, key, value, 0.2)
    for one, other in zip(shared, folded, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
