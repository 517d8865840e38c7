"""Text -> fairseq binaries, by fairseq's own binarizer, with every symbol and row accounted for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import replacing_folder, sha256, text_lines, write_json

SOURCES = "sources.json"


def check_text(text: Path, known: set[str], dictionary: Path) -> int:
    """Number of lines of ``text``. Raises ``UserError`` for a symbol that the dict lacks."""
    count = 0
    for count, line in enumerate(text_lines(text, "not found"), start=1):
        unknown = set(line.split()) - known
        if unknown:
            raise UserError(
                f"{text}, line {count}: unit {min(unknown)} is not in {dictionary}; "
                "the units and the LM must come from the same unit model"
            )
    return count


def binarize(texts: Mapping[str, Path], dictionary_path: Path, target: Path) -> dict[str, int]:
    """Write ``target``/<split>.{bin,idx}, dict.txt and the sources' hashes; return each split's
    rows.

    The folder is complete or absent: it is written beside its place and renamed.
    """
    from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer

    from ulm_prompt.prompt_lm.frozen_lm import load_dictionary

    dictionary = load_dictionary(dictionary_path.parent)
    known = set(dictionary.symbols)
    counts = {split: check_text(text, known, dictionary_path) for split, text in texts.items()}
    with replacing_folder(target) as folder:
        for split, text in texts.items():
            summary = FileBinarizer.multiprocess_dataset(
                str(text),
                "mmap",
                VocabularyDatasetBinarizer(dictionary, append_eos=True),
                str(folder / split),
                vocab_size=len(dictionary),
                num_workers=min(os.cpu_count() or 1, 8) if counts[split] > 10_000 else 1,
            )
            if summary.num_replaced or summary.num_seq != counts[split]:
                raise UserError(
                    f"{text}: fairseq wrote {summary.num_seq} of {counts[split]} rows and replaced "
                    f"{summary.num_replaced} symbols by <unk>; make the text again"
                )
        shutil.copyfile(dictionary_path, folder / "dict.txt")
        write_json(folder / SOURCES, {split: sha256(text) for split, text in texts.items()})
    return counts
