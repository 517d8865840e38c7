"""What sample.py is asked for, and what it writes: answers as they come, the published JSON at the
end, notes on rows that no answer fits.

While a run decodes, ``<output>.part`` holds a JSON line for each answered row, after a first line
that says what the answers were made from. A killed run resumes from there.
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
WITHIN = "_within_labels"  # ends the name of the file decoded within the label set
DIGITS = 5  # of a stored log-probability
FORMAT = 3  # of a partial file; 1 kept every ``<s>`` in an answer, 2 had no log-odds
_NUMBERS = {  # flag: type, default, least, most, help
    "batch_size": (int, 64, 1, math.inf, "utterances at a time (default: 64)"),
    "max_labels": (int, None, 1, math.inf, "cut an answer after this many "
                   f"(default: {MAX_LABELS}, or 5/4 of train's longest)"),
    "max_units": (int, 16_384, 1, math.inf, "a longer row is scored as wrong: memory grows with "
                  "its square (default: 16384)"),
    "beam": (int, 1, 1, math.inf, "hypotheses of beam search"),
    "lenpen": (float, 1.0, -10, 10, "scores are divided by length ** LENPEN"),
    "topk": (int, 0, 0, math.inf, "draw among the K likeliest"),
    "topp": (float, 0.0, 0, 1, "among the likeliest with P"),
    "temperature": (float, 1.0, 0.001, 1000, "above 1: flatter, below: sharper"),
    "seed": (int, 1, 0, 2**32 - 1, "of the draws"),
}  # fmt: skip
# to a row that is too long for the LM; it has no probability
NO_ANSWER: dict[str, Any] = {
    **{kind: {"predict": "", "score": None, "label_scores": []} for kind in ("free", "within")},
    "symbols": 0,
}


def add_search(parser: argparse.ArgumentParser) -> None:
    """The flags that say how answers are searched for, by fairseq's names where it has them."""
    flag = parser.add_argument_group("search", "the default is greedy, as published").add_argument
    add_dtype(flag)
    within = (
        "the labels of the second file: those that train has at the same position (slots; the "
        "default of tasks with a fixed number of labels) or anywhere (set; the default of texts), "
        "or only whole label sequences of train (trie)"
    )
    flag("--within_labels", nargs="?", choices=("slots", "set", "trie"), help=within)
    flag("--sampling", action="store_true", help="draw the free answers")
    for name, (kind, default, _, _, text) in _NUMBERS.items():
        others = [f"--sampling_{name}"] if name in ("topk", "topp") else []
        flag(f"--{name}", *others, type=kind, default=default, help=text)


def check_search(args: argparse.Namespace) -> None:
    """Raises ``UserError`` for a value out of range, or a flag without the one it belongs to."""
    for name, (_, _, least, most, _) in _NUMBERS.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            expected = f"at least {least}" if most == math.inf else f"{least} to {most}"
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
    """The values of ``add_search``'s flags, also of those that were not given; not of --dtype.
    ``longest``: the most labels that an utterance of train has.
    """
    options = {name: getattr(args, name) for name in (*_NUMBERS, "sampling")}
    options["max_labels"] = label_limit(args.max_labels, longest)
    return options | {"within_labels": args.within_labels or ("set" if is_text else "slots")}


def are_default(options: Mapping[str, Any], is_text: bool, longest: int) -> bool:
    """Whether answers that were searched for with ``options`` are the greedy ones to every row."""
    parser = argparse.ArgumentParser()
    add_search(parser)
    default = search_options(parser.parse_args([]), is_text, longest)
    default |= {name: options.get(name) for name in ("batch_size", "seed")}  # change no such answer
    return {**default, **options} == default and {"beam", "sampling"} <= options.keys()


class PartialAnswers(dict[int, dict[str, Any]]):
    """The answers of one run so far, row number -> ``entry``, each saved when it is added."""

    def __init__(self, path: Path, made_from: dict[str, Any]) -> None:
        """Read the file at ``path``, without a line cut off at the end, when it was ``made_from``
        the same; else begin it anew. Raises ``OSError`` when it cannot be written.
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
        """Save the answers of one batch; they are safe from a kill when this returns."""
        with naming(self.path):
            for row, answer in entries.items():
                self._handle.write((json.dumps({"row": row, **answer}) + "\n").encode())
            self._handle.flush()
        self.update(entries)

    def remove(self) -> None:
        """Delete the file: the run is complete and its output written."""
        self._handle.close()
        self.path.unlink(missing_ok=True)


def begun_in(partial: Path) -> str | None:
    """The dtype of the unfinished answers in ``partial``; None where there are none."""
    try:
        with open(partial, "rb") as handle:
            return _dtype(json.loads(handle.readline()))
    except (OSError, ValueError):
        return None


def _dtype(made_from: Mapping[str, Any]) -> str | None:
    machine = made_from.get("machine")
    return machine[0].removeprefix("torch.") if machine else None


def entry(decoded: Decoded, dictionary: Dictionary) -> dict[str, Any]:
    """Both answers to a row as they are stored: label units, the log-probability that the LM gives
    them, and the share of each label unit in it. ``symbols``: how many the free answer had. Within
    two labels also ``log_odds``, against the other label. As published, ``<s> 53`` is ``53``.
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
    """Write the free answers to ``path``, those within the label set beside it, and last, with
    their hashes, what both were ``made_from``.

    ``sources``: file_name, src (units and ``<s>``, as published) and label of each row.
    ``answers``: row -> its ``entry``. The free file has the published four keys and, when
    ``scored``, the scores.
    """
    origin_path(path).unlink(missing_ok=True)  # of earlier answers
    free, within = {}, {}
    for row, source in enumerate(sources):
        answer = answers[row]
        kept = answer["free"] if scored else {"predict": answer["free"]["predict"]}
        free[str(row)] = {**source, **kept}
        within[str(row)] = {**source, **answer["within"]}
    write_json(within_path(path), within)
    write_json(path, free)
    if made_from is not None:
        write_json(origin_path(path), {**made_from, "files": _hashes(path)})


def within_path(samples: Path) -> Path:
    """The file beside ``samples`` with the answers within the label set."""
    return samples.with_stem(samples.stem + WITHIN)


def origin_path(samples: Path) -> Path:
    """The file beside ``samples`` that says what they were made from."""
    return samples.with_name(samples.name.replace("samples_", "made_from_", 1))


def made_from(samples: Path) -> dict[str, Any]:
    """What both sample files were made from; nothing where that is not recorded of these files."""
    path = origin_path(samples)
    record = read_json(path, "ulm_prompt/sample.py") if path.is_file() else {}
    return record if record.get("files") in (None, _hashes(samples)) else {}


def _hashes(samples: Path) -> dict[str, str]:
    return hashes({"free": samples, "within": within_path(samples)})


def is_done(samples: Path, wanted: dict[str, Any], dtype: str) -> bool:
    """Whether ``samples`` holds the answers that would be made from ``wanted`` in ``dtype``."""
    record = made_from(samples)
    is_same = all(record.get(name) == value for name, value in wanted.items())
    return "files" in record and is_same and dtype in ("auto", _dtype(record))


def read_samples(path: Path) -> list[Sample]:
    """What a sample file says of each utterance, in its order; ``<s>``, which was kept in answers
    once, is no part of them. Raises ``UserError`` where there is no label, answer or utterance.
    """
    expected = "expected id -> file_name, src, label, predict; run sample.py again"
    samples = read_json(path, "ulm_prompt/sample.py")
    if not samples:
        raise UserError(f"{path}: no utterance in it; {expected}")
    for name, sample in samples.items():
        given = sample.items() if isinstance(sample, dict) else ()
        if not {"label", "predict"} <= {key for key, text in given if isinstance(text, str)}:
            raise UserError(f"{path}: {name[:60]!r}: {expected}")
        if BOS in sample["predict"]:
            sample["predict"] = " ".join(word for word in sample["predict"].split() if word != BOS)
    return list(samples.values())


def report_long(
    rows: Sequence[Sized], answers: Mapping[int, dict[str, Any]], options: Options, positions: int
) -> None:
    """Print how many rows have more than ``max_units`` and were not answered, how many free answers
    were cut after ``max_labels``, and how many rows are longer with their answer than the LM's
    ``positions``.
    """
    limit, max_units = options.max_labels, options.max_units
    units = [len(row) - 2 for row in rows]  # without </s> and <s>
    answered = [row for row in answers if units[row] <= max_units]
    lengths = [len(rows[row]) + answers[row]["symbols"] for row in answered]
    too_long = [count for count in units if count > max_units]
    beyond = [length for length in lengths if length > positions]
    for count, what in (
        (len(too_long), f"rows have more than {max_units:,} units ({max(units):,} at most): not "
         "answered, which is scored as wrong (--max_units)"),
        (sum(answer["symbols"] >= limit for answer in answers.values()),
         f"free answers were cut after {limit} labels (--max_labels)"),
        (len(beyond), f"rows are longer with their answer than the {positions:,} positions that "
         f"the LM has learned ({max(lengths, default=0):,} at most): their answers are worth less"),
    ):  # fmt: skip
        if count:
            print(f"  {count:,} {what}")
