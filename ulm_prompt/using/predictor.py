"""Trained prompts from Python: audio in, answers of all their tasks out.

predictor = Predictor.load(["KS", "IC"], Path("workspace"))
(answers,) = predictor(["clip.wav"])
answers["KS"][0].names, answers["KS"][0].probability
for start, end, answers in predictor.segments("meeting.wav"): ...
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.runs import torch_threads
from pipeline.unit_models import UnitModel, find_unit_model
from pipeline.workspace import REPOSITORY, Workspace
from preprocess.speech2unit.audio import BadAudio, length_and_rate, read_audio
from preprocess.speech2unit.features import SAMPLE_RATE
from ulm_prompt.prompt_data.binaries import encode
from ulm_prompt.prompt_data.tasks import load_task, task_names
from ulm_prompt.prompt_lm.batches import batches_by_length
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.checkpoint import prompted
from ulm_prompt.prompt_lm.label_answers import Answer, LabelAnswers
from ulm_prompt.prompt_lm.lm import load_unit_lm
from ulm_prompt.prompt_lm.precision import choose_dtype
from ulm_prompt.using.find_prompts import (
    find_prompt,
    is_shipped,
    shipped_prompt,
    task_and_unit_model,
)
from ulm_prompt.using.prompt_record import TENSORS, PromptRecord, read_record
from ulm_prompt.using.recordings import LONGEST, find_pieces, samples_of
from ulm_prompt.using.share import read_prompt, record_of
from ulm_prompt.using.speech_units import SpeechToUnits, UnitFiles

MOST_SECONDS = 120.0  # of one utterance: attention grows with the square of its length
BATCH_SECONDS = 60.0  # of audio that is encoded together
SMALL = 10_000_000  # LM parameters up to which threads wait for each other more than they compute
PIECES = 32  # of a recording that are answered together
BATCH_ROWS, BATCH_TOKENS = 64, 16_384  # that the LM reads together

Audio = Path | str | np.ndarray | Tensor


class Prediction(NamedTuple):
    """One answer of a task: its labels' names, the LM's probability of them together, and of each
    label after those before it.
    """

    names: tuple[str, ...]
    slots: tuple[str, ...]
    probability: float
    label_probabilities: tuple[float, ...]


class Segment(NamedTuple):
    """A piece of a recording, ``start`` to ``end`` seconds, and the answers of every task to it."""

    start: float
    end: float
    answers: dict[str, list[Prediction]]


class Predictor:
    """Answers of several tasks to speech, over one frozen LM and one speech model."""

    def __init__(
        self, records: dict[str, PromptRecord], speech: SpeechToUnits, lm: CachedLM,
        answers: Sequence[LabelAnswers], symbols: dict[str, int],
    ) -> None:  # fmt: skip
        self.records = records  # by name, in the order of the LM's prompts
        self._speech, self._lm, self._answers, self._symbols = speech, lm, answers, symbols
        parameters = sum(weight.numel() for weight in lm.model.lm.parameters())
        self._threads = None if speech.has_model or parameters > SMALL else 1

    @classmethod
    def load(
        cls,
        prompts: Sequence[str | Path] = (),
        workspace: Path = REPOSITORY,
        unit_model: str | None = None,
        model_date: str | None = None,
        dtype: str = "auto",
    ) -> Predictor:
        """Find the ``prompts`` (tasks, folders or files) and load what they share, once. With none,
        the prompt that comes with the repository answers.

        Raises ``UserError``, before anything large is loaded, for a prompt that is not to be found
        or does not go with the others, and for a missing LM, k-means or speech model.
        """
        prompts = prompts or [shipped_prompt()]
        home = Workspace(workspace)
        paths = [find_prompt(str(word), home, unit_model, model_date) for word in prompts]
        shipped = all(map(is_shipped, paths))
        if shipped:  # its LM and k-means ship too, the speech model is in the repository
            home = Workspace(shipped_prompt().parents[2])
        records = [_record(path, home) for path in paths]
        unit_model = find_unit_model(records[0].unit_model, home)
        if shipped:
            unit_model = unit_model.shipped
        files = _common_units(records, unit_model)
        folder = unit_model.lm_folder
        weights = [read_prompt(path) for path in paths]
        unit_lm = load_unit_lm(folder)
        models = [prompted(path, state, unit_lm, folder) for path, state in zip(paths, weights)]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        chosen, _ = choose_dtype(dtype, device)
        for model in models:
            model.to(device)
        symbols = unit_lm.dictionary
        names = _names([record.task for record in records], prompts)
        return cls(
            dict(zip(names, records)),
            SpeechToUnits(files),
            CachedLM(models, symbols.pad(), symbols.eos(), chosen),
            [LabelAnswers(record, symbols) for record in records],
            symbols.indices,
        )

    def __call__(
        self, audio: Sequence[Audio], top: int = 1
    ) -> list[dict[str, list[Prediction]] | BadAudio]:
        """The ``top`` likeliest answers of every task to each file or waveform, (T,) float32 at 16
        kHz; for audio that cannot be used, the reason.
        """
        with ThreadPoolExecutor(4) as reading:
            loaded = list(reading.map(self._waveform, audio))
        good = [place for place, item in enumerate(loaded) if isinstance(item, Tensor)]
        with torch_threads(self._threads):
            units = self._units([loaded[place] for place in good])
        results: list[dict[str, list[Prediction]] | BadAudio] = list(loaded)
        for place, answers in zip(good, self.answers(units, top)):
            results[place] = answers
        return results

    def segments(
        self, audio: Audio, top: int = 1, longest: float | None = None
    ) -> Iterator[Segment]:
        """The same for the pieces of a recording of any length: it is cut at pauses, and slid over
        where a piece would last more than ``longest`` seconds (default: 2, a slow word). Memory
        holds 32 pieces at a time.

        Raises ``BadAudio`` for a recording that cannot be used, or that holds no sound.
        """
        if isinstance(audio, (str, Path)):
            recording = Path(audio)
        else:
            recording = torch.as_tensor(audio, dtype=torch.float32, device="cpu").numpy()
            if recording.ndim != 1:
                raise BadAudio(f"expected samples (T,), found {recording.shape}")
        try:
            pieces = find_pieces(recording, longest or LONGEST)
        except (OSError, ValueError) as error:  # what is no file name at all
            raise BadAudio(str(error)) from None
        for first in range(0, len(pieces), PIECES):
            some = pieces[first : first + PIECES]
            results = self([samples_of(recording, piece) for piece in some], top)
            for piece, answers in zip(some, results):
                if isinstance(answers, BadAudio):
                    raise answers
                yield Segment(piece.start, piece.end, answers)

    def answers(self, units: Sequence[str], top: int = 1) -> list[dict[str, list[Prediction]]]:
        """The same for utterances that are units already, ``"71 12 57"`` each."""
        with torch_threads(self._threads):
            return self._answered(units, top)

    def _answered(self, units: Sequence[str], top: int) -> list[dict[str, list[Prediction]]]:
        rows = [
            torch.tensor(encode(f"</s> {each} <s>", self._symbols, "units", "the LM's dict.txt"))
            for each in units
        ]
        found: list[dict[str, list[Prediction]]] = [{} for _ in rows]
        count = len(self.records)
        pairs = [(row, which) for row in range(len(rows)) for which in range(count)]
        sizes = np.array([len(rows[row]) for row, _ in pairs], dtype=np.int64)
        order = sizes.argsort(kind="mergesort")
        tokens = max(BATCH_TOKENS, *sizes) if pairs else 1
        for batch in batches_by_length(order, sizes, tokens, BATCH_ROWS) if pairs else ():
            chosen = [pairs[place] for place in batch]
            which = [prompt for _, prompt in chosen]
            state = self._lm.prefill(
                [rows[row] for row, _ in chosen], which=which if count > 1 else None
            )
            for prompt, (name, record) in enumerate(self.records.items()):
                places = [place for place, own in enumerate(which) if own == prompt]
                if places:
                    own = state if len(places) == len(which) else state.select(places)
                    answers = self._answers[prompt](self._lm, own, top)
                    for place, of_row in zip(places, answers):
                        found[chosen[place][0]][name] = [_named(one, record) for one in of_row]
        return [{name: each[name] for name in self.records} for each in found]

    def _waveform(self, audio: Audio) -> Tensor | BadAudio:
        try:
            if isinstance(audio, (str, Path)):
                frames, rate = length_and_rate(Path(audio))
                if frames > MOST_SECONDS * rate:
                    return _too_long(frames / rate)
                samples = torch.from_numpy(read_audio(Path(audio), 0, frames).samples)
            else:
                samples = torch.as_tensor(audio, dtype=torch.float32, device="cpu")
        except BadAudio as error:
            return error
        except (OSError, ValueError) as error:  # what is no file name at all
            return BadAudio(str(error))
        if samples.ndim != 1 or not samples.isfinite().all():
            return BadAudio(f"expected finite samples (T,), found {tuple(samples.shape)}")
        if len(samples) > MOST_SECONDS * SAMPLE_RATE:
            return _too_long(len(samples) / SAMPLE_RATE)
        if len(samples) < self._speech.reader.min_samples:
            shortest = 1000 * self._speech.reader.min_samples / SAMPLE_RATE
            return BadAudio(f"is shorter than one frame ({shortest:.0f} ms)")
        return samples

    def _units(self, waveforms: Sequence[Tensor]) -> list[str]:
        """Units of each waveform; similar lengths are encoded together."""
        if not waveforms:
            return []
        sizes = np.array([len(waveform) for waveform in waveforms], dtype=np.int64)
        most = max(int(BATCH_SECONDS * SAMPLE_RATE), *sizes)
        units = [""] * len(waveforms)
        for batch in batches_by_length(sizes.argsort(kind="mergesort"), sizes, most, None):
            for place, text in zip(batch, self._speech([waveforms[place] for place in batch])):
                units[place] = text
        return units


def _too_long(seconds: float) -> BadAudio:
    return BadAudio(
        f"lasts {seconds:,.0f} s, expected at most {MOST_SECONDS:.0f}; cut it, or use --segments"
    )


def _named(answer: Answer, record: PromptRecord) -> Prediction:
    return Prediction(
        tuple(record.labels[label]["name"] for label in answer.labels),
        tuple(record.labels[label]["slot"] for label in answer.labels),
        math.exp(answer.score),
        tuple(map(math.exp, answer.label_scores)),
    )


def _names(tasks: Sequence[str], prompts: Sequence[str | Path]) -> list[str]:
    """Each prompt's task; what was asked for, where two have the same task."""
    names = [task if tasks.count(task) == 1 else str(word) for task, word in zip(tasks, prompts)]
    if len(set(names)) < len(names):
        raise UserError(f"--prompt: {', '.join(names)}: name each prompt once")
    return names


def _record(path: Path, workspace: Workspace) -> PromptRecord:
    if path.name == TENSORS:
        return read_record(path.parent)
    return record_of(path, *task_and_unit_model(path), workspace)


def _common_units(records: Sequence[PromptRecord], unit_model: UnitModel) -> UnitFiles:
    """The unit model that all prompts share. Raises ``UserError`` naming two that differ, or what
    is another one here.
    """
    first = records[0]
    for other in records[1:]:
        facts = [{**vars(record), **vars(record.units)} for record in (first, other)]
        for what in ("unit_model", "lm_fingerprint", *vars(first.units)):
            one, two = (each[what] for each in facts)
            unknown = what in ("lm_fingerprint", "kmeans") and not (one and two)
            if one != two and not unknown:  # an unknown LM is compared when it is loaded
                raise UserError(
                    f"--prompt: {first.task} and {other.task} differ in {what}: {one} and {two}; "
                    "answer them one at a time"
                )
    own_data = first.task in task_names() and not unit_model.shipped_first
    downstream = load_task(first.task).downstream if own_data else None
    files = UnitFiles(unit_model, downstream)
    files.check_here()
    found = files.record()
    for name, wanted in vars(first.units).items():
        if wanted != getattr(found, name) and not (name == "kmeans" and wanted is None):
            raise UserError(
                f"--prompt {first.task}: its {first.unit_model} has {name} {wanted}, here it is "
                f"{getattr(found, name)}; use the unit model that the prompt was trained with"
            )
    return files
