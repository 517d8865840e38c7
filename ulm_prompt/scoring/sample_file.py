"""The search flags of sample.py and the files that it writes: partial answers while it decodes, the
published JSON at the end, and notes on rows that are too long.

While a run decodes, ``<output>.part`` contains one JSON line per answered row. The first line
records what the answers were made from. A killed run resumes from this file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import naming, read_json, write_json
from ulm_prompt.prompt_data.tasks import MAX_LABELS, add_dtype, label_limit
from ulm_prompt.prompt_data.verbal import hashes

if TYPE_CHECKING:  # fairseq takes seconds to import
    from fairseq.data import Dictionary

    from ulm_prompt.prompt_lm.search import Decoded, Options

Sample = dict[str, Any]  # an utterance of a sample file: file_name, src, label, predict, scores
BOS = "<s>"
WITHIN = "_within_labels"  # the end of the file name of answers within the label set
DIGITS = 5  # decimals of a stored log-probability
FORMAT = 3  # of a partial file; 1 kept every ``<s>`` in an answer, 2 had no log-odds
_NUMBERS = {  # flag: type, default, minimum, maximum, help
    "batch_size": (int, 64, 1, math.inf, "utterances at a time (default: 64)"),
    "max_labels": (int, None, 1, math.inf, "cut an answer after this many "
                   f"(default: {MAX_LABELS}, or 5/4 of train's longest)"),
    "max_units": (int, 16_384, 1, math.inf, "score longer rows as wrong: memory grows with the "
                  "square of the length (default: 16384)"),
    "beam": (int, 1, 1, math.inf, "number of hypotheses of beam search (default: 1)"),
    "lenpen": (float, 1.0, -10, 10, "divide scores by length ** LENPEN (default: 1)"),
    "topk": (int, 0, 0, math.inf, "draw among the K likeliest labels"),
    "topp": (float, 0.0, 0, 1, "draw among the likeliest labels with total probability P"),
    "temperature": (float, 1.0, 0.001, 1000, "above 1: flatter, below 1: sharper (default: 1)"),
    "seed": (int, 1, 0, 2**32 - 1, "seed of the draws (default: 1)"),
}  # fmt: skip
# stored for a row that is longer than --max_units; it has no probability
NO_ANSWER: dict[str, Any] = {
    **{kind: {"predict": "", "score": None, "label_scores": []} for kind in ("free", "within")},
    "symbols": 0,
}


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add the search flags, with fairseq's names if fairseq has the flag."""
    flag = parser.add_argument_group("search", "the default is greedy, as published").add_argument
    add_dtype(flag)
    within = (
        "labels that the second file allows: the labels of train at the same position (slots; "
        "default for tasks with a fixed number of labels), all labels of train (set; default for "
        "texts), or only whole label sequences of train (trie)"
    )
    flag("--within_labels", nargs="?", choices=("slots", "set", "trie"), help=within)
    flag("--sampling", action="store_true", help="draw the free answers")
    for name, (kind, default, _, _, text) in _NUMBERS.items():
        aliases = [f"--sampling_{name}"] if name in ("topk", "topp") else []
        flag(f"--{name}", *aliases, type=kind, default=default, help=text)


def check_search(args: argparse.Namespace) -> None:
    """Raise ``UserError`` for a value out of range, or a flag without the flag that it needs."""
    for name, (_, _, minimum, maximum, _) in _NUMBERS.items():
        value = getattr(args, name)
        if value is not None and not minimum <= value <= maximum:
            expected = f"at least {minimum}" if maximum == math.inf else f"{minimum} to {maximum}"
            raise UserError(f"--{name} {value}: expected {expected}")
    beam, cut, temperature = args.beam > 1, args.topk or args.topp, args.temperature
    for is_wrong, problem in (
        (args.topk and args.topp, "--topk and --topp: choose one"),
        (args.sampling and beam, "--sampling and --beam: choose one"),
        (cut and not args.sampling, "--topk and --topp belong to --sampling: add it"),
        (
            temperature != 1 and not (args.sampling or beam),
            "--temperature changes no greedy answer: add --sampling or --beam",
        ),
        (args.lenpen != 1 and not beam, "--lenpen belongs to --beam: add it"),
    ):
        if is_wrong:
            raise UserError(problem)


def search_options(args: argparse.Namespace, is_text: bool, longest: int) -> dict[str, Any]:
    """Return the values of all flags of ``add_search`` except --dtype, defaults included.
    ``longest``: the most labels of any train utterance.
    """
    options = {name: getattr(args, name) for name in (*_NUMBERS, "sampling")}
    options["max_labels"] = label_limit(args.max_labels, longest)
    return options | {"within_labels": args.within_labels or ("set" if is_text else "slots")}


def are_default(options: Mapping[str, Any], is_text: bool, longest: int) -> bool:
    """Return whether ``options`` give the same answers as the default (greedy) search."""
    parser = argparse.ArgumentParser()
    add_search(parser)
    default = search_options(parser.parse_args([]), is_text, longest)
    default |= {name: options.get(name) for name in ("batch_size", "seed")}  # without effect here
    return {**default, **options} == default and {"beam", "sampling"} <= options.keys()


class PartialAnswers(dict[int, dict[str, Any]]):
    """The answers of a run so far, row number -> ``entry``. ``add`` also saves them."""

    def __init__(self, path: Path, made_from: dict[str, Any]) -> None:
        """Read the file at ``path``, without a line cut off at the end, if its header equals
        ``made_from``. Otherwise start a new file. Raises ``OSError`` if it cannot be written.
        """
        super().__init__()
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = open(path, "a+b")
        self._handle.seek(0)
        header = (json.dumps({"format": FORMAT, **made_from}) + "\n").encode()
        end = len(header) if self._handle.readline() == header else 0
        for line in self._handle if end else ():
            try:
                answer = json.loads(line) if line.endswith(b"\n") else {}
            except ValueError:
                break
            if "row" not in answer:
                break
            self[answer.pop("row")] = answer
            end += len(line)
        with naming(path):
            self._handle.truncate(end)
            if not end:
                self._handle.write(header)

    def add(self, entries: dict[int, dict[str, Any]]) -> None:
        """Save the answers of one batch. After the return, a kill cannot lose them."""
        with naming(self.path):
            for row, answer in entries.items():
                self._handle.write((json.dumps({"row": row, **answer}) + "\n").encode())
            self._handle.flush()
        self.update(entries)

    def remove(self) -> None:
        """Delete the file, after the complete output was written."""
        self._handle.close()
        self.path.unlink(missing_ok=True)


def begun_in(partial: Path) -> str | None:
    """Return the dtype of the unfinished answers in ``partial``, or None if the file is missing."""
    try:
        with open(partial, "rb") as handle:
            return _dtype(json.loads(handle.readline()))
    except (OSError, ValueError):
        return None


def _dtype(made_from: Mapping[str, Any]) -> str | None:
    machine = made_from.get("machine")
    return machine[0].removeprefix("torch.") if machine else None


def entry(decoded: Decoded, dictionary: Dictionary) -> dict[str, Any]:
    """Return both answers to a row in the stored form: the label units, their log-probability in
    total and per label unit. ``symbols``: the length of the free answer. Between two labels also
    ``log_odds``, against the other label. As published, ``<s> 53`` is stored as ``53``.
    """
    stored: dict[str, Any] = {"symbols": len(decoded.free.symbols)}
    for kind, answer in (("free", decoded.free), ("within", decoded.within)):
        scored = zip(answer.symbols, answer.scores)
        labels = [(symbol, score) for symbol, score in scored if symbol != dictionary.bos()]
        stored[kind] = {
            "predict": " ".join(dictionary[symbol] for symbol, _ in labels),
            "score": round(sum(score for _, score in labels), DIGITS),
            "label_scores": [round(score, DIGITS) for _, score in labels],
        }
    if decoded.log_odds is not None:
        stored["within"]["log_odds"] = round(decoded.log_odds, DIGITS)
    return stored


def write_samples(
    path: Path, sources: Iterable[dict[str, str]], answers: Mapping[int, dict[str, Any]],
    scored: bool, made_from: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the answers within the label set next to ``path``, then the free answers to ``path``,
    then ``made_from`` with the hashes of both files. cal_acc.py looks for the free answers: in this
    order, a kill leaves no new free answers without the other file.

    ``sources``: file_name, src (units and ``<s>``, as published) and label of each row.
    ``answers``: row -> ``entry``. The free file has the four published keys and, if ``scored``,
    the scores.
    """
    origin_path(path).unlink(missing_ok=True)  # it describes earlier answers
    free, within = {}, {}
    for row, source in enumerate(sources):
        answer = answers[row]
        fields = answer["free"] if scored else {"predict": answer["free"]["predict"]}
        free[str(row)] = {**source, **fields}
        within[str(row)] = {**source, **answer["within"]}
    write_json(within_path(path), within)
    write_json(path, free)
    if made_from is not None:
        write_json(origin_path(path), {**made_from, "files": _hashes(path)})


def within_path(samples: Path) -> Path:
    """Return the path of the answers within the label set that belong to ``samples``."""
    return samples.with_stem(samples.stem + WITHIN)


def origin_path(samples: Path) -> Path:
    """Return the path of the file that records what ``samples`` was made from."""
    return samples.with_name(samples.name.replace("samples_", "made_from_", 1))


def origin_of(samples: Path) -> dict[str, Any]:
    """Return what both sample files were made from; an empty dict if no record matches them."""
    path = origin_path(samples)
    record = read_json(path, "ulm_prompt/sample.py") if path.is_file() else {}
    return record if record.get("files") in (None, _hashes(samples)) else {}


def _hashes(samples: Path) -> dict[str, str]:
    return hashes({"free": samples, "within": within_path(samples)})


def is_done(samples: Path, wanted: dict[str, Any], dtype: str) -> bool:
    """Return whether ``samples`` contains the answers made from ``wanted`` in ``dtype``."""
    record = origin_of(samples)
    is_same = all(record.get(name) == value for name, value in wanted.items())
    return "files" in record and is_same and dtype in ("auto", _dtype(record))


def read_samples(path: Path) -> list[Sample]:
    """Read the utterances of a sample file, in order, without the ``<s>`` of older files' answers.
    Raises ``UserError`` if a label or answer is missing, or if the file has no utterance.
    """
    expected = "expected id -> file_name, src, label, predict; run sample.py again"
    samples = read_json(path, "ulm_prompt/sample.py")
    if not samples:
        raise UserError(f"{path}: contains no utterance; {expected}")
    for name, sample in samples.items():
        fields = sample.items() if isinstance(sample, dict) else ()
        if not {"label", "predict"} <= {key for key, text in fields if isinstance(text, str)}:
            raise UserError(f"{path}: {name[:60]!r}: {expected}")
        if BOS in sample["predict"]:
            sample["predict"] = " ".join(word for word in sample["predict"].split() if word != BOS)
    return list(samples.values())


def report_long(
    rows: Sequence[Sized], answers: Mapping[int, Any], options: Options, max_positions: int
) -> None:
    """Print three counts: rows with more than ``max_units``, which were not answered; free answers
    that were cut after ``max_labels``; and rows that are longer, with the answer, than the LM's
    ``max_positions``.
    """
    limit, max_units = options.max_labels, options.max_units
    units = [len(row) - 2 for row in rows]  # without </s> and <s>
    answered = [row for row in answers if units[row] <= max_units]
    lengths = [len(rows[row]) + answers[row]["symbols"] for row in answered]
    too_long = [count for count in units if count > max_units]
    beyond = [length for length in lengths if length > max_positions]
    for count, problem in (
        (len(too_long), f"rows have more than {max_units:,} units ({max(units):,} at most): not "
         "answered and scored as wrong (--max_units)"),
        (sum(answer["symbols"] >= limit for answer in answers.values()),
         f"free answers were cut after {limit} labels (--max_labels)"),
        (len(beyond), f"rows with their answers exceed the {max_positions:,} positions that the LM "
         f"has learned ({max(lengths, default=0):,} at most): expect worse answers"),
    ):  # fmt: skip
        if count:
            print(f"  {count:,} {problem}")
