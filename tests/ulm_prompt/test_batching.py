"""Batches that lose no row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from ulm_prompt.prompt_lm.data import batches_by_length


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=300),
    st.integers(1, 20),
    st.integers(40, 200),
    st.integers(0, 2**31),
)
def test_every_row_is_in_one_batch(
    sizes: list[int], max_sentences: int, max_tokens: int, seed: int
) -> None:
    """fairseq's own batching drops the last batch when its size is no multiple of 8."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    array = np.array(sizes)
    batches = list(batches_by_length(order, array, max_tokens, max_sentences))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) <= max_sentences
        assert len(batch) * array[batch].max() <= max_tokens


def test_padding_is_small() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(5, 100, 5000)
    batches = list(batches_by_length(generator.permutation(5000), sizes, None, 32))
    padded = sum(len(batch) * sizes[batch].max() for batch in batches)
    assert sizes.sum() / padded > 0.95


def test_a_row_that_fits_no_batch_is_an_error() -> None:
    with pytest.raises(UserError, match="row 1 has 50 tokens"):
        list(batches_by_length([0, 1], np.array([5, 50]), 40, 8))
