"""Prompt text, the verbalizer's map and binaries; whether they fit what they were made from.

Every output keeps the hashes of its sources, so that a stale one is refused:
rows -> data_prompt/ -> verbal.json and the renamed text -> binaries.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.files import read_json, replacing_folder, sha256, text_lines, write_json, writing
from pipeline.rows import SPLITS, are_labels
from pipeline.unit_models import lm_folder
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.label_names import JOIN, Label, encode, named_labels, with_joint_names
from ulm_prompt.prompt_data.tasks import Pair, in_paper_order

if TYPE_CHECKING:
    from fairseq.data import Dictionary

SOURCES = "sources.json"  # the hashes of what a folder was made from
VERBAL_SOURCES = "verbal_sources.json"  # the same of what verbal.json beside it was made from
METHODS = ("freq", "kmeans", "random")
SEPARATOR = " <s> "
TEXT_MADE_BY = "ulm_prompt/make_data.py"
LABELS_MADE_BY = "ulm_prompt/gen_labelspace.py"
MADE_BY = "ulm_prompt/verbalizer.py"
_WRITTEN = (*(f"{split}.{kind}" for split in SPLITS for kind in ("bin", "idx")), "dict.txt")
_LATER = ("LM's dict", "renamed")  # what the records of earlier versions lack


def read_prompt_text(path: Path, made_by: str = MADE_BY) -> Iterator[tuple[str, str]]:
    """Stream (units, labels) of each line ``units <s> labels`` that the command ``made_by`` wrote;
    the verbalizer may name labels by several units, ``12+47``. Raises ``UserError`` for a missing
    file, or another line.
    """
    for number, line in enumerate(text_lines(path, f"not found; run {made_by} first"), start=1):
        units, separator, labels = line.partition(SEPARATOR)
        numbers = labels.replace(JOIN, " ") if made_by == MADE_BY else labels
        if not (units and separator and are_labels(numbers)):
            problem = f"expected 'units <s> labels', found {line[:60]!r}"
            raise _again(f"{path}, line {number}", problem, made_by)
        yield units, labels


def rename_labels(
    source: Path, target: Path, names: dict[str, str], seen: Container[str]
) -> tuple[int, int]:
    """Write prompt text with every label renamed; returns the number of its lines, and of those
    with a label that is not in ``seen``. Raises ``UserError`` for a label without a name.
    """
    count = unseen = 0
    with writing(target) as handle:
        rows = read_prompt_text(source, TEXT_MADE_BY)
        for count, (units, text) in enumerate(rows, start=1):
            labels = text.split()
            if other := [label for label in labels if label not in names]:
                problem = f"label {other[0]} is not in labelspace.json"
                raise _again(f"{source}, line {count}", problem, LABELS_MADE_BY)
            unseen += any(label not in seen for label in labels)
            renamed = " ".join(names[label] for label in labels)
            handle.write(f"{units}{SEPARATOR}{renamed}\n")
    return count, unseen


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


def write_entry(path: Path, task: str, entry: object, made_by: str = MADE_BY) -> None:
    """Replace one task's entry in a JSON file that ``made_by`` makes."""
    by_task = read_json(path, made_by) if path.exists() else {}
    write_json(path, in_paper_order({**by_task, task: entry}))


def record_verbal(workspace: Workspace, pair: Pair, names: dict[str, str], method: str) -> None:
    """Save the task's label -> unit map, then the hashes of what belongs to it."""
    path = verbal_path(workspace, pair)
    write_entry(path, pair.task, names)
    sources = {"method": method, **_sources(workspace, pair, names, method)}
    write_entry(path.with_name(VERBAL_SOURCES), pair.task, sources)


def load_verbal(workspace: Workspace, pair: Pair) -> tuple[str, dict[str, str]]:
    """The method that made the task's verbalizer, and its label -> unit map. Raises ``UserError``
    when it, what it was made from or the text that it renamed is missing or has changed.
    """
    path = verbal_path(workspace, pair)
    files = path, path.with_name(VERBAL_SOURCES)
    names, recorded = (read_json(file, MADE_BY).get(pair.task) for file in files)
    method = recorded.get("method") if isinstance(recorded, dict) else None
    if not (isinstance(names, dict) and str(method).isidentifier()):
        raise _again(path, f"expected label -> unit for {pair.task}", MADE_BY)
    for name, value in _sources(workspace, pair, names, method).items():
        if recorded.get(name, value if name in _LATER else None) != value:
            what = f"{pair.task}'s {'renamed text' if name == 'renamed' else name}"
            raise _again(path, f"stale, {what} has changed since it was made", MADE_BY)
    return method, names


def label_names(workspace: Workspace, pair: Pair) -> dict[str, Label]:
    """Label unit -> label, by verbal.json and the downstream's labels.json. Raises ``UserError``
    where the two do not fit.
    """
    _, verbal = load_verbal(workspace, pair)
    named = named_labels(workspace, pair, verbal)
    return {unit: named[number] for number, unit in verbal.items()}


def renamed_texts(workspace: Workspace, pair: Pair) -> dict[str, Path]:
    """Each split's text with renamed labels. Raises ``UserError`` as ``load_verbal``."""
    method, _ = load_verbal(workspace, pair)
    return prompt_texts(workspace, pair, renamed_kind(pair, method))


def check_data_bin(workspace: Workspace, pair: Pair) -> dict[str, str]:
    """The hashes of the renamed text that the task's binaries were made from.

    Raises ``UserError`` unless that is the current text, the binaries are what was written, and
    their dict is the LM's, if there is an LM.
    """
    folder = workspace.data_bin(pair.unit_model, pair.data_name)
    made_from = read_json(folder / SOURCES, "ulm_prompt/fairseq_preprocess.py")
    recorded = made_from.pop("written", None)  # None: by an earlier version
    written = hashes({name: folder / name for name in _WRITTEN})
    symbols = lm_hashes(lm_folder(workspace, pair.unit_model))["dict.txt"]
    if made_from != hashes(renamed_texts(workspace, pair)):
        problem = "stale, its text has changed since"
    elif recorded not in (None, written):
        problem = f"not the files that {SOURCES} was written for (another SHA-256)"
    elif symbols not in ("", written["dict.txt"]):
        problem = "stale, the LM has another dict.txt"
    else:
        return made_from
    raise _again(folder, problem, "ulm_prompt/fairseq_preprocess.py")


def has_data_bin(workspace: Workspace, pair: Pair) -> bool:
    """Whether stages 2 and 3 were done, on the present rows and the LM's dict."""
    try:
        check_data_bin(workspace, pair)
    except UserError:
        return False
    return True


def lm_hashes(folder: Path) -> dict[str, str]:
    """By them the same LM is known without loading it."""
    return hashes({name: folder / name for name in ("checkpoint_best.pt", "dict.txt")})


def binarize(
    texts: Mapping[str, Path], dictionary: Dictionary, dictionary_path: Path, target: Path,
    names: Iterable[str] = (),
) -> dict[str, int]:  # fmt: skip
    """Write the folder ``target``, complete or not at all: <split>.{bin,idx}, dict.txt and the
    sources' hashes; return each split's rows. ``dictionary`` was read from ``dictionary_path``;
    ``names`` of several units are numbered behind its symbols, and are not in dict.txt.

    fairseq reads a text ten times as slowly, to the same bytes.
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
        written = hashes({name: folder / name for name in _WRITTEN})
        write_json(folder / SOURCES, {**hashes(texts), "written": written})
    return counts


def _again(path: str | Path, problem: str, command: str) -> UserError:
    return UserError(f"{path}: {problem}; run {command} again")


def _sources(
    workspace: Workspace, pair: Pair, names: dict[str, str], method: str
) -> dict[str, object]:
    """The hashes of what belongs to a verbalizer. Raises ``UserError`` for a stale data_prompt/."""
    texts = prompt_texts(workspace, pair)
    folder = texts["train"].parent
    if read_json(folder / SOURCES, TEXT_MADE_BY) != row_hashes(workspace, pair):
        raise _again(folder, "stale, the rows it was made from have changed", TEXT_MADE_BY)
    map_hash = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    renamed = hashes(prompt_texts(workspace, pair, renamed_kind(pair, method)))
    sources: dict[str, object] = {"map": map_hash, "data_prompt": hashes(texts), "renamed": renamed}
    if method == "kmeans":
        weights, symbols = lm_hashes(lm_folder(workspace, pair.unit_model)).values()
        sources |= {"LM": weights, "LM's dict": symbols}
    return sources


def row_hashes(workspace: Workspace, pair: Pair) -> dict[str, str]:
    """Of the rows that a task's text is made from."""
    data = pair.config.downstream, pair.unit_model
    return hashes({split: workspace.rows(*data, split) for split in SPLITS})


def hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of each file; that of a missing one is empty."""
    return {name: sha256(path) if path.is_file() else "" for name, path in files.items()}
