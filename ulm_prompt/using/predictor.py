"""Trained prompts from Python: audio in, answers of all their tasks out.

predictor = Predictor.load(["KS", "IC"], Path("workspace"))
(answers,) = predictor(["clip.wav"])
answers["KS"][0].names, answers["KS"][0].probability
for start, end, answers in predictor.segments("meeting.wav"): ...
print(predictor.audio)  # how many recordings were read, mixed, resampled, left out and so on
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

from pipeline.devices import choose_device
from pipeline.errors import UserError
from pipeline.runs import torch_threads
from pipeline.unit_models import UnitModel, find_unit_model
from pipeline.workspace import REPOSITORY, Workspace
from preprocess.speech2unit.audio import (
    BadAudio,
    Tally,
    Waveform,
    array_waveform,
    length_and_rate,
    read_audio,
)
from preprocess.speech2unit.features import SAMPLE_RATE
from ulm_prompt.prompt_data.label_names import encode
from ulm_prompt.prompt_data.prompt_record import PromptRecord
from ulm_prompt.prompt_data.tasks import load_task, task_names
from ulm_prompt.prompt_lm.cache import CachedLM
from ulm_prompt.prompt_lm.data import batches_by_length
from ulm_prompt.prompt_lm.labels import LabelAnswer, LabelAnswers
from ulm_prompt.prompt_lm.lm import choose_dtype, load_unit_lm
from ulm_prompt.using.find_prompts import (
    find_prompt,
    is_shipped,
    shipped_prompt,
    task_and_unit_model,
)
from ulm_prompt.using.share import load_prompt, record_of
from ulm_prompt.using.speech import LONGEST, SpeechToUnits, UnitFiles, find_pieces, heard_of

MOST_SECONDS = 120.0  # of one utterance: attention grows with the square of its length
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


class _Prompt(NamedTuple):
    record: PromptRecord
    lm: CachedLM  # the shared LM with this prompt's keys and values
    label_answers: LabelAnswers


class Predictor:
    """Answers of several tasks to speech, over one frozen LM and one speech model."""

    def __init__(
        self, prompts: dict[str, _Prompt], speech: SpeechToUnits, symbols: dict[str, int],
        parameters: int, computes_on: str,
    ) -> None:  # fmt: skip
        self.records = {name: prompt.record for name, prompt in prompts.items()}
        self._prompts, self._speech, self._symbols = prompts, speech, symbols
        self.audio = Tally()  # of all recordings so far
        self.computes_on = computes_on  # the device, why it was chosen, and the dtype
        self._threads = None if speech.has_model or parameters > SMALL else 1

    @classmethod
    def load(
        cls,
        prompts: Sequence[str | Path] = (),
        workspace: Path = REPOSITORY,
        unit_model: str | None = None,
        model_date: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
    ) -> Predictor:
        """Find the ``prompts`` (tasks, folders or files) and load what they share, once. With none,
        the prompt that comes with the repository answers.

        Raises ``UserError``, before anything large is loaded, for a prompt that does not exist or
        does not go with the others, and for a missing LM, k-means or speech model.
        """
        prompts = prompts or [shipped_prompt()]
        on, why = choose_device(device)
        home = Workspace(workspace)
        paths = [find_prompt(str(word), home, unit_model, model_date) for word in prompts]
        shipped = all(map(is_shipped, paths))
        if shipped:  # its LM and k-means ship too, the speech model is in the repository
            home = Workspace(shipped_prompt().parents[2])
        records = [record_of(path, *task_and_unit_model(path), home) for path in paths]
        tasks = [record.task for record in records]
        # two prompts of a task are called by the words that asked for them
        names = [
            task if tasks.count(task) == 1 else str(prompts[i]) for i, task in enumerate(tasks)
        ]
        if len(set(names)) < len(names):
            raise UserError(f"--prompt: {', '.join(names)}: name each prompt once")
        known = find_unit_model(records[0].unit_model, home)
        files = _unit_files(records, known.shipped if shipped else known)
        unit_lm = load_unit_lm(files.lm_folder)
        models = [load_prompt(path, unit_lm, files.lm_folder) for path in paths]
        symbols = unit_lm.dictionary
        chosen, reason = choose_dtype(dtype, on, unit_lm.parameters)
        lms = [CachedLM(model.to(on), symbols.pad(), symbols.eos()) for model in models]
        for lm in lms:  # every prompt is projected by now, in float32
            lm.to(chosen)
        loaded = {
            name: _Prompt(record, lm, LabelAnswers(record, symbols))
            for name, record, lm in zip(names, records, lms)
        }
        speech, said = SpeechToUnits(files, on), f"{why}, in {chosen} ({reason})"
        return cls(loaded, speech, symbols.indices, unit_lm.parameters, said)

    def __call__(
        self, audio: Sequence[Audio], top: int = 1
    ) -> list[dict[str, list[Prediction]] | BadAudio]:
        """The ``top`` likeliest answers of every task to each file or waveform, (T,) at 16 kHz; for
        audio that cannot be used, the reason. Waveforms are float in [-1, 1] or integers, which
        their type scales. ``self.audio`` counts what was converted or is remarkable.
        """
        with ThreadPoolExecutor(4) as reading:
            loaded = list(reading.map(self._waveform, audio))
        for item in loaded:
            self.audio.add(item if isinstance(item, BadAudio) else item.notes)
        return self._answered(loaded, top)

    def _answered(
        self, loaded: Sequence[Waveform | BadAudio], top: int
    ) -> list[dict[str, list[Prediction]] | BadAudio]:
        good = {i: item.samples for i, item in enumerate(loaded) if isinstance(item, Waveform)}
        with torch_threads(self._threads):
            units = self._speech([torch.from_numpy(samples) for samples in good.values()])
        results: list[dict[str, list[Prediction]] | BadAudio] = [
            item if isinstance(item, BadAudio) else {} for item in loaded
        ]
        for number, answers in zip(good, self.answers(units, top)):
            results[number] = answers
        return results

    def segments(
        self, audio: Audio, top: int = 1, longest: float | None = None
    ) -> Iterator[Segment]:
        """The same for the pieces of a recording of any length: it is cut at pauses, and slid over
        where a piece would last more than ``longest`` seconds (default: 2, a slow word). Memory
        holds 32 pieces at a time.

        Raises ``BadAudio`` for a recording that cannot be used, or that holds no sound.
        """
        notes: dict[str, None] = {}
        try:
            if isinstance(audio, (str, Path)):
                recording: Path | np.ndarray = Path(audio)
            else:
                recording = array_waveform(audio).samples
            pieces = find_pieces(recording, longest or LONGEST)
            for first in range(0, len(pieces), PIECES):
                batch = pieces[first : first + PIECES]
                loaded = [self._long_enough(heard_of(recording, piece)) for piece in batch]
                notes |= dict.fromkeys(note for heard in loaded for note in heard.notes)
                for piece, answers in zip(batch, self._answered(loaded, top)):
                    assert not isinstance(answers, BadAudio)  # every piece is a waveform
                    yield Segment(piece.start, piece.end, answers)
        except BadAudio as error:
            self.audio.add(error)
            raise
        self.audio.add(notes)

    def answer_files(
        self, paths: Sequence[Path], top: int, segments: bool, longest: float | None
    ) -> Iterator[tuple[Path, tuple[float, float] | None, dict[str, list[Prediction]] | BadAudio]]:
        """The answers to every file, or to its ``segments``: path, start and end of the segment in
        seconds, and the answers or why there are none.
        """
        if not segments:
            yield from ((path, None, answers) for path, answers in zip(paths, self(paths, top)))
            return
        for path in paths:
            try:
                for start, end, answers in self.segments(path, top, longest):
                    yield path, (start, end), answers
            except BadAudio as error:
                yield path, None, error

    def answers(self, units: Sequence[str], top: int = 1) -> list[dict[str, list[Prediction]]]:
        """The same for utterances that are units already, ``"71 12 57"`` each."""
        rows = [
            torch.tensor(encode(f"</s> {text} <s>", self._symbols, "units", "the LM's dict.txt"))
            for text in units
        ]
        answers: list[dict[str, list[Prediction]]] = [{} for _ in rows]
        sizes = np.array([len(row) for row in rows], dtype=np.int64)
        most = max([BATCH_TOKENS, *sizes])
        batches = list(batches_by_length(range(len(rows)), sizes, most, BATCH_ROWS))
        with torch_threads(self._threads):
            for name, (record, lm, label_answers) in self._prompts.items():
                for batch in batches:
                    state = lm.prefill([rows[number] for number in batch])
                    for number, ranked in zip(batch, label_answers(lm, state, top)):
                        answers[number][name] = [_named(answer, record) for answer in ranked]
        return answers

    def _waveform(self, audio: Audio) -> Waveform | BadAudio:
        try:
            if not isinstance(audio, (str, Path)):
                heard = array_waveform(audio)
                _check_seconds(len(heard.samples) / SAMPLE_RATE)
            else:
                length, rate = length_and_rate(Path(audio))
                _check_seconds(length / rate)
                heard = read_audio(Path(audio), 0, length)
            return self._long_enough(heard)
        except BadAudio as error:
            return error

    def _long_enough(self, heard: Waveform) -> Waveform:
        """``heard``. Raises ``BadAudio`` where it has no frame."""
        if len(heard.samples) < (least := self._speech.reader.min_samples):
            raise BadAudio(f"is shorter than one frame ({1000 * least / SAMPLE_RATE:.0f} ms)")
        return heard


def _check_seconds(seconds: float) -> None:
    if seconds > MOST_SECONDS:
        raise BadAudio(
            f"is too long for one utterance: {seconds:,.0f} s, expected at most "
            f"{MOST_SECONDS:.0f}; cut it, or use --segments"
        )


def _named(answer: LabelAnswer, record: PromptRecord) -> Prediction:
    return Prediction(
        tuple(record.labels[label]["name"] for label in answer.labels),
        tuple(record.labels[label]["slot"] for label in answer.labels),
        math.exp(answer.score),
        tuple(map(math.exp, answer.label_scores)),
    )


def _unit_files(records: Sequence[PromptRecord], unit_model: UnitModel) -> UnitFiles:
    """The unit model of all prompts, in this workspace. Raises ``UserError`` where prompts have
    different ones, or were trained on units that were made in another way.
    """
    first = records[0]
    has_data = first.task in task_names() and not unit_model.shipped_first
    downstream = load_task(first.task).downstream if has_data else None
    files = UnitFiles(unit_model, downstream)
    files.check_here()
    if first.units is not None:  # a complete record has them
        files.settings.dtype = first.units.dtype
    here = vars(files.unit_settings())
    for record in records:
        if record.unit_model != first.unit_model:
            raise UserError(
                f"--prompt: {first.task} and {record.task} differ in unit_model: "
                f"{first.unit_model} and {record.unit_model}; answer them one at a time"
            )
        for name, wanted in vars(record.units).items():
            if wanted != here[name] and not (name == "kmeans" and wanted is None):
                raise UserError(
                    f"--prompt {record.task}: its {record.unit_model} has {name} {wanted}, here "
                    f"it is {here[name]}; use the unit model that the prompt was trained with"
                )
    return files
