"""Prompt text, the verbalizer's map and binaries, and the checks that they fit their sources.

Every output except labelspace.json stores the hashes of its sources, so that stale files are
refused: rows -> data_prompt/ -> verbal.json and the renamed text -> binaries.
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

SOURCES = "sources.json"  # the hashes of the files that a folder was made from
VERBAL_SOURCES = "verbal_sources.json"  # the hashes of a map, its sources and the renamed text
VERBAL_METHODS = ("freq", "kmeans", "random")
SEPARATOR = " <s> "
TEXT_MADE_BY = "ulm_prompt/make_data.py"
LABELS_MADE_BY = "ulm_prompt/gen_labelspace.py"
VERBAL_MADE_BY = "ulm_prompt/verbalizer.py"
_WRITTEN = (*(f"{split}.{kind}" for split in SPLITS for kind in ("bin", "idx")), "dict.txt")
_UNRECORDED = ("LM's dict", "renamed")  # hashes that old records do not contain


def read_prompt_text(path: Path, renamed: bool = True) -> Iterator[tuple[str, str]]:
    """Stream (units, labels) of the lines ``units <s> labels``. ``renamed``: whether verbalizer.py
    has renamed the labels; then several units may name a label, ``12+47``. Raises ``UserError`` if
    the file is missing or a line has another form.
    """
    made_by = VERBAL_MADE_BY if renamed else TEXT_MADE_BY
    for number, line in enumerate(text_lines(path, f"not found; run {made_by} first"), start=1):
        units, separator, labels = line.partition(SEPARATOR)
        numbers = labels.replace(JOIN, " ") if renamed else labels
        if not (units and separator and are_labels(numbers)):
            problem = f"expected 'units <s> labels', found {line[:60]!r}"
            raise _rerun_error(f"{path}, line {number}", problem, made_by)
        yield units, labels


def rename_labels(
    source: Path, target: Path, names: dict[str, str], seen: Container[str]
) -> tuple[int, int]:
    """Write prompt text with every label renamed. Returns the number of lines, and of lines with a
    label that is not in ``seen``. Raises ``UserError`` for a label without a name.
    """
    count = unseen = 0
    with writing(target) as handle:
        rows = read_prompt_text(source, renamed=False)
        for count, (units, text) in enumerate(rows, start=1):
            labels = text.split()
            if unknown := [label for label in labels if label not in names]:
                problem = f"label {unknown[0]} is not in labelspace.json"
                raise _rerun_error(f"{source}, line {count}", problem, LABELS_MADE_BY)
            unseen += any(label not in seen for label in labels)
            renamed = " ".join(names[label] for label in labels)
            handle.write(f"{units}{SEPARATOR}{renamed}\n")
    return count, unseen


def prompt_texts(workspace: Workspace, pair: Pair, kind: str = "data_prompt") -> dict[str, Path]:
    """Return the path of each split's text."""
    folder = pair.unit_model, pair.config.downstream, kind
    return {split: workspace.prompt_text(*folder, split) for split in SPLITS}


def renamed_kind(pair: Pair, method: str) -> str:
    """Return the name of the folder, next to data_prompt/, of the renamed text."""
    return f"verbalizers/{pair.verbalizer}" if pair.verbalizer else f"data_{method}"


def verbal_path(workspace: Workspace, pair: Pair) -> Path:
    """Return the path of the map. A named verbalizer has its own map, next to its text."""
    folder = workspace.datasets(pair.unit_model)
    if pair.verbalizer:
        folder = folder / pair.config.downstream / renamed_kind(pair, "")
    return folder / "verbal.json"


def write_entry(path: Path, task: str, entry: object, made_by: str = VERBAL_MADE_BY) -> None:
    """Replace one task's entry in a JSON file that the command ``made_by`` writes."""
    by_task = read_json(path, made_by) if path.exists() else {}
    write_json(path, in_paper_order({**by_task, task: entry}))


def record_verbal(workspace: Workspace, pair: Pair, names: dict[str, str], method: str) -> None:
    """Save the task's label -> unit map, then the hashes of its sources."""
    path = verbal_path(workspace, pair)
    write_entry(path, pair.task, names)
    sources = {"method": method, **_sources(workspace, pair, names, method)}
    write_entry(path.with_name(VERBAL_SOURCES), pair.task, sources)


def load_verbal(workspace: Workspace, pair: Pair) -> tuple[str, dict[str, str]]:
    """Return the method that made the task's verbalizer, and the label -> unit map. Raises
    ``UserError`` if the map, its sources or the renamed text is missing or has changed.
    """
    path = verbal_path(workspace, pair)
    command = _of_map(VERBAL_MADE_BY, pair)
    files = path, path.with_name(VERBAL_SOURCES)
    names, recorded = (read_json(file, command).get(pair.task) for file in files)
    method = recorded.get("method") if isinstance(recorded, dict) else None
    if not (isinstance(names, dict) and str(method).isidentifier()):
        raise _rerun_error(path, f"expected label -> unit for {pair.task}", command)
    command += f" --method {method}" * (method != "freq")
    for name, value in _sources(workspace, pair, names, method).items():
        if recorded.get(name, value if name in _UNRECORDED else None) != value:
            renamed = prompt_texts(workspace, pair, renamed_kind(pair, method))["train"].parent
            source = f"the text in {renamed}" if name == "renamed" else f"{pair.task}'s {name}"
            raise _rerun_error(path, f"stale, {source} has changed since it was made", command)
    return method, names


def label_names(workspace: Workspace, pair: Pair) -> dict[str, Label]:
    """Return label unit -> label, from verbal.json and the downstream's labels.json. Raises
    ``UserError`` if the two files do not fit.
    """
    _, verbal = load_verbal(workspace, pair)
    named = named_labels(workspace, pair, verbal)
    return {unit: named[number] for number, unit in verbal.items()}


def renamed_texts(workspace: Workspace, pair: Pair) -> dict[str, Path]:
    """Return the path of each split's renamed text. Raises ``UserError`` if it is stale."""
    method, _ = load_verbal(workspace, pair)
    return prompt_texts(workspace, pair, renamed_kind(pair, method))


def find_renamed_text(
    workspace: Workspace, pair: Pair, split: str, digest: str | None
) -> Path | None:
    """Return the renamed text of ``split`` whose SHA-256 is ``digest``, of any verbal map; None if
    there is no such text. A run may have used ``--verbalizer NAME``.
    """
    folder = workspace.datasets(pair.unit_model) / pair.config.downstream
    texts = (*folder.glob(f"data_*/{split}.txt"), *folder.glob(f"verbalizers/*/{split}.txt"))
    return next((text for text in texts if sha256(text) == digest), None)


def check_data_bin(workspace: Workspace, pair: Pair) -> dict[str, str]:
    """Return the hashes of the renamed text that the task's binaries were made from.

    Raises ``UserError`` if the text or the binaries have changed since, or if the LM has another
    dict. If the LM is missing, any dict is accepted.
    """
    folder = workspace.data_bin(pair.unit_model, pair.data_name)
    command = _of_map("ulm_prompt/fairseq_preprocess.py", pair)
    made_from = read_json(folder / SOURCES, command)
    recorded = made_from.pop("written", None)  # None: made by an old version
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
    raise _rerun_error(folder, problem, command)


def has_data_bin(workspace: Workspace, pair: Pair) -> bool:
    """Return whether the binaries exist and were made from the current rows and dict."""
    try:
        check_data_bin(workspace, pair)
    except UserError:
        return False
    return True


def lm_hashes(folder: Path) -> dict[str, str]:
    """Return the hashes of an LM's files. They identify the LM without loading it."""
    return hashes({name: folder / name for name in ("checkpoint_best.pt", "dict.txt")})


def binarize(
    texts: Mapping[str, Path], dictionary: Dictionary, dictionary_path: Path, target: Path,
    names: Iterable[str] = (),
) -> dict[str, int]:  # fmt: skip
    """Write the folder ``target``, all files or none: <split>.{bin,idx}, dict.txt and the hashes of
    the sources. Returns each split's number of rows. ``dictionary`` was read from
    ``dictionary_path``. ``names`` of several units get numbers after its symbols, but dict.txt does
    not list them. fairseq's own script writes the same bytes ten times as slowly.
    """
    import torch
    from fairseq.data import indexed_dataset

    counts = {}
    symbols = with_joint_names(dictionary, names)
    with replacing_folder(target) as folder:
        for split, text in texts.items():
            prefix = str(folder / split)
            builder = indexed_dataset.make_builder(
                indexed_dataset.data_file_path(prefix), impl="mmap", vocab_size=len(symbols)
            )
            counts[split] = 0
            for number, line in enumerate(text_lines(text, "not found"), start=1):
                row = encode(line, symbols.indices, f"{text}, line {number}", dictionary_path)
                builder.add_item(torch.tensor([*row, dictionary.eos()], dtype=torch.int32))
                counts[split] = number
            builder.finalize(indexed_dataset.index_file_path(prefix))
        shutil.copyfile(dictionary_path, folder / "dict.txt")
        written = hashes({name: folder / name for name in _WRITTEN})
        write_json(folder / SOURCES, {**hashes(texts), "written": written})
    return counts


def _of_map(command: str, pair: Pair) -> str:
    """Add the name of the pair's verbal map to a command, if the map is not the default one."""
    return f"{command} --verbalizer {pair.verbalizer}" if pair.verbalizer else command


def _rerun_error(path: str | Path, problem: str, command: str) -> UserError:
    return UserError(f"{path}: {problem}; run {command} again")


def _sources(
    workspace: Workspace, pair: Pair, names: dict[str, str], method: str
) -> dict[str, object]:
    """Return the hashes of a map, its sources and its text. Raises if data_prompt/ is stale."""
    texts = prompt_texts(workspace, pair)
    folder = texts["train"].parent
    if read_json(folder / SOURCES, TEXT_MADE_BY) != row_hashes(workspace, pair):
        raise _rerun_error(folder, "stale, the rows it was made from have changed", TEXT_MADE_BY)
    map_hash = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    renamed = hashes(prompt_texts(workspace, pair, renamed_kind(pair, method)))
    sources: dict[str, object] = {"map": map_hash, "data_prompt": hashes(texts), "renamed": renamed}
    if method == "kmeans":
        weights, symbols = lm_hashes(lm_folder(workspace, pair.unit_model)).values()
        sources |= {"LM": weights, "LM's dict": symbols}
    return sources


def row_hashes(workspace: Workspace, pair: Pair) -> dict[str, str]:
    """Return the hashes of the rows that a task's text is made from."""
    data = pair.config.downstream, pair.unit_model
    return hashes({split: workspace.rows(*data, split) for split in SPLITS})


def hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, or an empty text for a missing file."""
    return {name: sha256(path) if path.is_file() else "" for name, path in files.items()}
