"""Batches that contain every row, shots per class, noise on units, and topics of utterances without
labels.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from pipeline.errors import UserError
from pipeline.rows import read_rows
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.ulm_text import topics, write_ulm_text
from ulm_prompt.prompt_lm.data import RowDataset, add_noise, batches_by_length, draw_shots
from ulm_prompt.prompt_lm.lm import load_dictionary
from ulm_prompt.prompt_lm.task import UnitPromptConfig, UnitPromptTask


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
    """fairseq's own function drops the last batch if its size is no multiple of 8."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    array = np.array(sizes)
    batches = list(batches_by_length(order, array, max_tokens, max_sentences))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) <= max_sentences
        assert len(batch) * array[batch].max() <= max_tokens


def test_a_row_that_fits_no_batch_is_an_error() -> None:
    expected = "max_tokens=40: row 2 has 50 tokens; use --set max_tokens=50 or, for an LM, a lower"
    with pytest.raises(UserError, match=expected):
        list(batches_by_length([0, 1], np.array([5, 50]), 40, 8))


@pytest.mark.parametrize("downstream", ["speech_commands", "fluent_commands"])
def test_padding_on_the_published_units(downstream: str, data: Path) -> None:
    """Padding is below 5 % in every epoch, and every epoch has other batches."""
    rows = read_rows(data / "units" / "hubert100" / downstream / "train")
    sizes = np.array([len(row.units.split()) + len(row.labels.split()) + 2 for row in rows])
    epochs = []
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(sizes))
        batches = list(batches_by_length(order, sizes, 4096, 32))
        padded = sum(len(batch) * sizes[batch].max() for batch in batches)
        assert sizes.sum() / padded > 0.95
        epochs.append({frozenset(batch.tolist()) for batch in batches})
    assert len(epochs[0] & epochs[1]) < 10


# four classes; one of them has only three distinct rows; every row is repeated
ROWS = [((n, n % 7), (n % 4, 9)) for n in range(40) if n % 4 or n < 12]
BALANCED = ROWS * 3 + ROWS[::-1]


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_every_class_gives_so_many_distinct_rows(shots: int) -> None:
    numbers = draw_shots(BALANCED, shots, seed=3)
    assert list(numbers) == sorted(numbers)
    drawn = [BALANCED[number] for number in numbers]
    assert len(set(drawn)) == len(drawn)
    counts = Counter(labels for _, labels in drawn)
    assert counts == {(0, 9): min(shots, 3), **{(label, 9): shots for label in (1, 2, 3)}}


def test_a_draw_depends_on_the_seed_and_rows_alone() -> None:
    few, more = (draw_shots(BALANCED, shots, seed=3) for shots in (2, 5))
    assert set(few) < set(more), "nested"
    assert list(few) == list(draw_shots(iter(BALANCED), 2, seed=3))
    assert list(few) != list(draw_shots(BALANCED, 2, seed=4))
    renamed = [(units, tuple(90 - label for label in labels)) for units, labels in BALANCED]
    assert list(few) == list(draw_shots(renamed, 2, seed=3)), "another verbalizer"
    assert len(draw_shots(BALANCED, 1000, seed=3)) == len(ROWS)


def test_noise_replaces_a_share_of_the_units_and_leaves_out_as_large_a_one() -> None:
    """Noise keeps the order of the units, and at least one unit."""
    row = np.full(50_000, 7)
    noisy = add_noise(row, 0.1, np.array([8, 9]), (1, 1, 3))
    assert (row == 7).all() and len(noisy) / 50_000 == pytest.approx(0.9, abs=0.01)
    shares = [np.mean(noisy == unit) for unit in (7, 8, 9)]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.01)
    kept = add_noise(np.arange(1000), 0.3, np.array([-1]), (1, 1, 0))
    assert (np.diff(kept[kept >= 0]) > 0).all()
    for seed in range(100):
        assert len(add_noise(np.array([7, 7]), 0.95, np.array([5]), (1, seed))) >= 1


def rows_of(dataset: RowDataset, epoch: int) -> list[list[int]]:
    dataset.set_epoch(epoch)
    return [dataset[index]["tokens"].tolist() for index in range(len(dataset))]


def test_only_train_rows_get_noise_and_every_epoch_gets_new_noise(prepared: Path) -> None:
    workspace = Workspace(prepared)
    folders = {"data": str(workspace.data_bin("tiny100", "KS")), "lm": str(workspace.lm("tiny100"))}
    task = UnitPromptTask.setup_task(
        UnitPromptConfig(**folders, unit_noise=0.2, max_tokens=0, seed=1)
    )
    symbols = load_dictionary(workspace.lm("tiny100"))
    for split in ("train", "valid"):
        task.load_dataset(split)
        clean = RowDataset(workspace.data_bin("tiny100", "KS") / split, symbols, shuffle=False)
        first, second = (rows_of(task.datasets[split], epoch) for epoch in (1, 2))
        assert rows_of(task.datasets[split], 1) == first, "an epoch can be repeated"
        if split == "valid":
            assert first == second == rows_of(clean, 1)
            continue
        different = [a != b for a, b in zip(first, second)]
        assert np.mean(different) > 0.5
        batch = task.datasets[split].collater([task.datasets[split][i] for i in range(8)])
        for index in range(8):  # the targets of the loss are still the labels
            labels = clean[index]["tokens"][clean[index]["separator"] :].tolist()
            targets = [unit for unit in batch["target"][index].tolist() if unit != clean.pad]
            assert targets == labels


def test_skip_long_is_no_remedy_if_no_row_fits(prepared: Path) -> None:
    workspace = Workspace(prepared)
    folders = {"data": str(workspace.data_bin("tiny100", "KS")), "lm": str(workspace.lm("tiny100"))}
    for skip_long in (False, True):
        config = UnitPromptConfig(**folders, skip_long=skip_long, max_tokens=1, seed=1)
        with pytest.raises(UserError, match=r"longer than max_tokens=1 \(.*\); raise max_tokens"):
            UnitPromptTask.setup_task(config).load_dataset("train")


def spoken(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Return utterances of four kinds: noise, then one of four orders of the same units."""
    rng = np.random.default_rng(seed)
    words = [np.random.default_rng(kind).permutation(12) for kind in range(4)]
    kinds = rng.integers(4, size=count).tolist()
    lines = [np.concatenate([rng.integers(12, size=4), words[kind]]) for kind in kinds]
    return [" ".join(map(str, line)) for line in lines], kinds


def test_topics_separate_kinds_by_the_order_of_units() -> None:
    """All kinds contain the same units, so uni-grams alone cannot separate them."""
    train, train_kinds = spoken(800, seed=1)
    valid, valid_kinds = spoken(200, seed=2)
    split_codes = topics(train, valid, codebooks=3, seed=1)
    assert [codes.shape for codes in split_codes] == [(800, 3), (200, 3)]
    for codes, kinds in zip(split_codes, (train_kinds, valid_kinds)):
        for book in codes.T:
            assert book.min() >= 0 and book.max() < 100
            majority = [np.bincount(np.array(kinds)[book == topic]).max() for topic in set(book)]
            assert sum(majority) / len(kinds) > 0.95
    assert normalized_mutual_info_score(*split_codes[0].T[:2]) < 0.999, "codebooks differ"


def test_text_contains_each_utterance_and_its_topics(tmp_path: Path) -> None:
    train, valid = spoken(60, seed=1)[0], spoken(20, seed=2)[0]
    tasks = {"train": {"words": train}, "valid": {"words": valid}}
    written = write_ulm_text(tmp_path, {"train": [], "valid": []}, tasks, 3, 5, seed=1)
    codes = topics(train, valid[:5], 3, seed=1)
    for split, lines, rows in zip(("train", "valid"), (train, valid[:5]), codes):
        pairs = [line.split(" <s> ") for line in written[split].read_text().splitlines()]
        assert [units for units, _ in pairs] == lines
        for row, (_, names) in zip(rows.tolist(), pairs):
            assert [int(name) for name in names.split()] == [code % 12 for code in row]
