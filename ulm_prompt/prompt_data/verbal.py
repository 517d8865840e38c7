"""Prompt text, the verbalizer's map and binaries; whether they fit what they were made from.

Every output keeps the hashes of its sources, so that a stale one is refused:
rows -> data_prompt/ -> verbal.json and the renamed text -> binaries.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.files import read_json, replacing_folder, sha256, text_lines, write_json, writing
from pipeline.rows import SPLITS, are_labels
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, in_paper_order

if TYPE_CHECKING:
    from fairseq.data import Dictionary

SOURCES = "sources.json"  # the hashes of what a folder was made from
METHODS = ("freq", "kmeans", "random")
SEPARATOR = " <s> "
JOIN = "+"  # 12+47 names a label that has no unit of its own
MADE_BY = "ulm_prompt/verbalizer.py"


def read_prompt_text(path: Path, made_by: str) -> Iterator[tuple[str, str]]:
    """Stream (units, labels) of each line ``units <s> labels``, both as written.

    Raises ``UserError`` for a missing file (``made_by`` is the command that makes it) or a line
    without one ``<s>``. The verbalizer's text may name labels by several units, ``12+47``.
    """
    lines = text_lines(path, f"not found; run {made_by} first")
    for number, line in enumerate(lines, start=1):
        units, separator, labels = line.partition(SEPARATOR)
        numbers = labels.replace(JOIN, " ") if made_by == MADE_BY else labels
        if not (units and separator and are_labels(numbers)):
            raise UserError(
                f"{path}, line {number}: expected 'units <s> labels', found {line[:60]!r}; "
                f"run {made_by} again"
            )
        yield units, labels


def rename_labels(
    source: Path, target: Path, names: dict[str, str], seen: Container[str]
) -> tuple[int, int]:
    """Write prompt text ``source`` to ``target`` with every label renamed.

    Returns its number of lines, and of the lines with a label that is not in ``seen``. Raises
    ``UserError`` for a label without a name.
    """
    count = unseen = 0
    with writing(target) as handle:
        rows = read_prompt_text(source, "ulm_prompt/make_data.py")
        for count, (units, labels) in enumerate(rows, start=1):
            try:
                renamed = " ".join(names[label] for label in labels.split())
            except KeyError as error:
                raise UserError(
                    f"{source}, line {count}: label {error.args[0]} is not in the verbalizer; "
                    f"run ulm_prompt/gen_labelspace.py, then {MADE_BY} again"
                ) from None
            unseen += any(label not in seen for label in labels.split())
            handle.write(f"{units}{SEPARATOR}{renamed}\n")
    return count, unseen


def unit_names(units: Sequence[str], count: int) -> list[str]:
    """Names for ``count`` labels: the units in their order, then sets of two units and more, those
    that stand closest to each other first. Fewer where there are not so many sets.
    """
    names: list[str] = []
    for size in range(1, len(units) + 1):
        if len(names) >= count:
            break
        sets = sorted(itertools.combinations(range(len(units)), size), key=lambda s: s[-1] - s[0])
        names += [JOIN.join(units[i] for i in chosen) for chosen in sets]
    return names[:count]


def with_joint_names(dictionary: Dictionary, names: Iterable[str]) -> Dictionary:
    """``dictionary``, and behind its symbols those ``names`` that join several units.

    Raises ``UserError`` for a name with a unit that ``dictionary`` lacks.
    """
    joint = [name for name in names if JOIN in name]
    if not joint:
        return dictionary
    extended = copy.deepcopy(dictionary)
    for name in joint:
        encode(name.replace(JOIN, " "), dictionary.indices, f"label {name}", "the LM's dict.txt")
        extended.add_symbol(name)
    return extended


def prompt_texts(workspace: Workspace, pair: Pair, kind: str = "data_prompt") -> dict[str, Path]:
    """The path of each split's text."""
    folder = pair.unit_model, pair.config.downstream, kind
    return {split: workspace.prompt_text(*folder, split) for split in SPLITS}


def renamed_kind(pair: Pair, method: str) -> str:
    """The folder, beside data_prompt/, of the text that ``method`` renamed."""
    return f"verbalizers/{pair.verbalizer}" if pair.verbalizer else f"data_{method}"


def verbal_path(workspace: Workspace, pair: Pair) -> Path:
    """The map's file: one for the unit model, or, for a named verbalizer, beside its text."""
    folder = workspace.datasets(pair.unit_model)
    if pair.verbalizer:
        folder = folder / pair.config.downstream / renamed_kind(pair, "")
    return folder / "verbal.json"


def record_rows(workspace: Workspace, pair: Pair) -> None:
    """Save beside data_prompt/ the hashes of the rows that it was made from."""
    folder = prompt_texts(workspace, pair)["train"].parent
    write_json(folder / SOURCES, _row_hashes(workspace, pair))


def record_verbal(workspace: Workspace, pair: Pair, names: dict[str, str], method: str) -> None:
    """Save the task's label -> unit map in verbal.json, then its sources in verbal_sources.json."""
    path = verbal_path(workspace, pair)
    sources = {"method": method, **_sources(workspace, pair, names, method)}
    for file, entry in ((path, names), (path.with_name("verbal_sources.json"), sources)):
        by_task = read_json(file, MADE_BY) if file.exists() else {}
        by_task[pair.task] = entry
        write_json(file, in_paper_order(by_task))


def load_verbal(workspace: Workspace, pair: Pair) -> tuple[str, dict[str, str]]:
    """The method that made the task's verbalizer, and its label -> unit map.

    Raises ``UserError`` when it is missing, was edited, or what it was made from has changed.
    """
    path = verbal_path(workspace, pair)
    names = read_json(path, MADE_BY).get(pair.task)
    recorded = read_json(path.with_name("verbal_sources.json"), MADE_BY).get(pair.task)
    if names is None or recorded is None:
        raise UserError(f"{path}: nothing about {pair.task}; run {MADE_BY}")
    method = recorded.get("method") if isinstance(recorded, dict) else None
    if not (isinstance(names, dict) and str(method).isidentifier()):
        raise UserError(f"{path}: expected label -> unit for {pair.task}; run {MADE_BY} again")
    for name, value in _sources(workspace, pair, names, method).items():
        if recorded.get(name) != value:
            raise UserError(
                f"{path}: stale, {pair.task}'s {name} has changed since it was made; "
                f"run {MADE_BY} again"
            )
    return method, names


def renamed_texts(workspace: Workspace, pair: Pair) -> dict[str, Path]:
    """Each split's text with renamed labels. Raises ``UserError`` when it is missing or stale."""
    method, _ = load_verbal(workspace, pair)
    return prompt_texts(workspace, pair, renamed_kind(pair, method))


def check_data_bin(workspace: Workspace, pair: Pair) -> None:
    """Raises ``UserError`` unless the task's binaries were made from the current renamed text."""
    path = workspace.data_bin(pair.unit_model, pair.data_name) / SOURCES
    made_from = read_json(path, "ulm_prompt/fairseq_preprocess.py")
    if made_from != _hashes(renamed_texts(workspace, pair)):
        raise UserError(
            f"{path.parent}: stale, its text has changed since; "
            "run ulm_prompt/fairseq_preprocess.py again"
        )


def _sources(
    workspace: Workspace, pair: Pair, names: dict[str, str], method: str
) -> dict[str, object]:
    """What a verbalizer depends on. Raises ``UserError`` when data_prompt/ is stale itself."""
    texts = prompt_texts(workspace, pair)
    for text in texts.values():
        if not text.exists():
            raise UserError(f"{text}: not found; run ulm_prompt/make_data.py first")
    folder = texts["train"].parent
    if read_json(folder / SOURCES, "ulm_prompt/make_data.py") != _row_hashes(workspace, pair):
        raise UserError(
            f"{folder}: stale, the rows it was made from have changed; "
            "run ulm_prompt/make_data.py again, then the stages after it"
        )
    sources = {
        "map": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        "data_prompt": _hashes(texts),
    }
    if method == "kmeans":
        sources["LM"] = sha256(lm_folder(workspace, pair.unit_model) / "checkpoint_best.pt")
    return sources


def _row_hashes(workspace: Workspace, pair: Pair) -> dict[str, str]:
    data = pair.config.downstream, pair.unit_model
    rows = {split: workspace.rows(*data, split) for split in SPLITS}
    for path in rows.values():
        if not path.exists():
            raise UserError(f"{path}: this split is missing; make it with preprocess/runner.py")
    return _hashes(rows)


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    return {split: sha256(path) for split, path in files.items()}


def encode(line: str, symbols: Mapping[str, int], where: str, dictionary: str | Path) -> list[int]:
    """The symbols of ``line`` as numbers. Raises ``UserError``, beginning with ``where``, for one
    that the dict lacks.
    """
    words = line.split()
    try:
        return [symbols[word] for word in words]
    except KeyError:
        unknown = min(word for word in words if word not in symbols)
        raise UserError(
            f"{where}: unit {unknown} is not in {dictionary}; the units and the LM must come from "
            "the same unit model"
        ) from None


def binarize(
    texts: Mapping[str, Path], dictionary: Dictionary, dictionary_path: Path, target: Path,
    names: Iterable[str] = (),
) -> dict[str, int]:  # fmt: skip
    """Write ``target``/<split>.{bin,idx}, dict.txt and the sources' hashes; return each split's
    rows. ``dictionary`` was read from ``dictionary_path``; the labels' ``names`` of several
    units are numbered behind its symbols, and are not in the folder's dict.txt.

    The folder is complete or absent: it is written under another name and renamed. fairseq reads
    a text ten times as slowly, to the same bytes.
    """
    import torch
    from fairseq.data import indexed_dataset

    counts = {}
    symbols = with_joint_names(dictionary, names)
    with replacing_folder(target) as folder:
        for split, text in texts.items():
            file = str(folder / split)
            builder = indexed_dataset.make_builder(
                indexed_dataset.data_file_path(file), impl="mmap", vocab_size=len(symbols)
            )
            counts[split] = 0
            for number, line in enumerate(text_lines(text, "not found"), start=1):
                row = encode(line, symbols.indices, f"{text}, line {number}", dictionary_path)
                builder.add_item(torch.tensor([*row, dictionary.eos()], dtype=torch.int32))
                counts[split] = number
            builder.finalize(indexed_dataset.index_file_path(file))
        shutil.copyfile(dictionary_path, folder / "dict.txt")
        write_json(folder / SOURCES, _hashes(texts))
    return counts
