"""Text -> fairseq binaries, by fairseq's own builder, with every symbol and row accounted for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import replacing_folder, sha256, text_lines, write_json

SOURCES = "sources.json"


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


def binarize(texts: Mapping[str, Path], dictionary_path: Path, target: Path) -> dict[str, int]:
    """Write ``target``/<split>.{bin,idx}, dict.txt and the sources' hashes; return each split's
    rows.

    The folder is complete or absent: it is written under another name and renamed. fairseq reads
    a text ten times as slowly, to the same bytes.
    """
    import torch
    from fairseq.data import indexed_dataset

    from ulm_prompt.prompt_lm.lm import load_dictionary

    dictionary = load_dictionary(dictionary_path.parent)
    counts = {}
    with replacing_folder(target) as folder:
        for split, text in texts.items():
            file = str(folder / split)
            builder = indexed_dataset.make_builder(
                indexed_dataset.data_file_path(file), impl="mmap", vocab_size=len(dictionary)
            )
            counts[split] = 0
            for number, line in enumerate(text_lines(text, "not found"), start=1):
                row = encode(line, dictionary.indices, f"{text}, line {number}", dictionary_path)
                builder.add_item(torch.tensor([*row, dictionary.eos()], dtype=torch.int32))
                counts[split] = number
            builder.finalize(indexed_dataset.index_file_path(file))
        shutil.copyfile(dictionary_path, folder / "dict.txt")
        write_json(folder / SOURCES, {split: sha256(text) for split, text in texts.items()})
    return counts
