"""Answer audio with trained prompts, from Python. docs/using_prompts.md shows how to use it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.devices import choose_device, torch_threads
from pipeline.errors import UserError
from pipeline.unit_models import UnitModel, find_unit_model
from pipeline.workspace import REPOSITORY, Workspace
from preprocess.speech2unit.audio import BadAudio, Tally, Waveform, array_waveform
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
from ulm_prompt.using.share import load_prompted_lm, record_of
from ulm_prompt.using.speech import (
    LONGEST,
    Recording,
    SpeechToUnits,
    UnitFiles,
    find_pieces,
    read_waveform,
    size_of,
)

MOST_SECONDS = 120.0  # of one utterance: attention grows with the square of the length
SMALL = 10_000_000  # LM parameters; up to here threads wait longer than they compute
PIECES = 32  # pieces of a recording in one batch
BATCH_ROWS, BATCH_TOKENS = 64, 16_384  # the most rows and tokens in one batch of the LM

Audio = Path | str | np.ndarray | Tensor


class Prediction(NamedTuple):
    """One answer of a task: the names and slots of the labels, the LM's probability of the whole
    answer, and the probability of each label given the previous labels.
    """

    names: tuple[str, ...]
    slots: tuple[str, ...]
    probability: float
    label_probabilities: tuple[float, ...]


Answers = dict[str, list[Prediction]]  # task -> answers, the likeliest first


class Segment(NamedTuple):
    """A piece of a recording, ``start`` to ``end`` in seconds, with the answers of every task."""

    start: float
    end: float
    answers: Answers


@dataclass(eq=False, repr=False)
class Predictor:
    """Answers speech for one or several tasks, with one frozen LM and one speech model."""

    records: dict[str, PromptRecord]
    computes_on: str  # the device, why it was chosen, and the dtype
    _lms: dict[str, CachedLM]  # the shared LM with the keys and values of each prompt
    _labels: dict[str, LabelAnswers]
    _speech: SpeechToUnits
    _symbols: dict[str, int]
    _threads: int | None
    audio: Tally = field(default_factory=Tally)  # counts of all recordings so far

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
        """Find the ``prompts`` (tasks, folders or files; default: the repository's prompt) and load
        the shared models once.

        Raises ``UserError``, before anything large is loaded, if a prompt does not exist, if
        prompts need different unit models, or if an LM, k-means or speech model is missing.
        """
        prompts = prompts or [shipped_prompt()]
        torch_device, why = choose_device(device)
        home = Workspace(workspace)
        paths = [find_prompt(str(word), home, unit_model, model_date) for word in prompts]
        shipped = all(map(is_shipped, paths))
        if shipped:  # its LM and k-means are in the repository, not in the workspace
            home = Workspace(shipped_prompt().parents[2])
        records = [record_of(path, *task_and_unit_model(path), home) for path in paths]
        tasks = [record.task for record in records]
        # a task name is not unique for two prompts of one task: use the values of --prompt
        names = [
            task if tasks.count(task) == 1 else str(word) for task, word in zip(tasks, prompts)
        ]
        if len(set(names)) < len(names):
            raise UserError(f"--prompt: {', '.join(names)}: name each prompt once")
        found_unit_model = find_unit_model(records[0].unit_model, home)
        if shipped:
            found_unit_model = found_unit_model.shipped
        files, lm_folder = _unit_files(records, found_unit_model), found_unit_model.lm_folder
        unit_lm = load_unit_lm(lm_folder)
        models = [load_prompted_lm(path, unit_lm, lm_folder) for path in paths]
        symbols = unit_lm.dictionary
        lm_dtype, reason = choose_dtype(dtype, torch_device, unit_lm.parameters)
        lms = [CachedLM(model.to(torch_device), symbols.pad(), symbols.eos()) for model in models]
        for lm in lms:  # after CachedLM has projected all prompts in float32
            lm.to(lm_dtype)
        is_small = files.ckpt_path is None and unit_lm.parameters <= SMALL
        return cls(
            dict(zip(names, records)),
            f"{why}, in {lm_dtype} ({reason})",
            dict(zip(names, lms)),
            {name: LabelAnswers(record, symbols) for name, record in zip(names, records)},
            SpeechToUnits(files, torch_device),
            symbols.indices,
            1 if is_small else None,
        )

    def __call__(self, audio: Sequence[Audio], top: int = 1) -> list[Answers | BadAudio]:
        """Return the ``top`` likeliest answers of every task to each file or waveform, (T,) at
        16 kHz, or a ``BadAudio`` with the reason. Waveforms are float in [-1, 1], or integers,
        which are scaled by their type. ``self.audio`` counts conversions and problems.
        """
        with ThreadPoolExecutor(4) as readers:
            loaded = list(readers.map(self._utterance, audio))
        for item in loaded:
            self.audio.add(item if isinstance(item, BadAudio) else item.notes)
        answers = iter(self._answered([item for item in loaded if isinstance(item, Waveform)], top))
        return [item if isinstance(item, BadAudio) else next(answers) for item in loaded]

    def segments(
        self, audio: Audio, top: int = 1, longest: float | None = None
    ) -> Iterator[Segment]:
        """Yield the segments of a recording of any length, with answers. The recording is cut at
        pauses. A piece of more than ``longest`` seconds (default: 2, a slow word) becomes
        overlapping windows. Memory contains 32 pieces at a time.

        Raises ``BadAudio`` for a recording that cannot be read, or without sound.
        """
        notes: dict[str, None] = {}
        try:
            recording = _recording(audio)
            pieces = find_pieces(recording, longest or LONGEST)
            for number in range(0, len(pieces), PIECES):
                batch = pieces[number : number + PIECES]
                loaded = [self._read(recording, piece.first, piece.last) for piece in batch]
                notes |= dict.fromkeys(note for waveform in loaded for note in waveform.notes)
                for piece, answers in zip(batch, self._answered(loaded, top)):
                    yield Segment(piece.start, piece.end, answers)
        except BadAudio as error:
            self.audio.add(error)
            raise
        self.audio.add(notes)

    def answer_files(
        self, paths: Sequence[Path], top: int, segments: bool, longest: float | None
    ) -> Iterator[tuple[Path, tuple[float, ...], Answers | BadAudio]]:
        """Yield each file, start and end in seconds (only with ``segments``), and the answers or
        the reason for no answer.
        """
        if not segments:
            yield from ((path, (), answers) for path, answers in zip(paths, self(paths, top)))
            return
        for path in paths:
            try:
                for *times, answers in self.segments(path, top, longest):
                    yield path, tuple(times), answers
            except BadAudio as error:
                yield path, (), error

    def answers(self, units: Sequence[str], top: int = 1) -> list[Answers]:
        """Return the answers to utterances that are already units, ``"71 12 57"`` each."""
        sources = "units", "the LM's dict.txt"
        encoded = [encode(f"</s> {text} <s>", self._symbols, *sources) for text in units]
        sizes = np.array([len(row) for row in encoded], dtype=np.int64)
        most_tokens = max([BATCH_TOKENS, *sizes])
        answers: list[Answers] = [{} for _ in encoded]
        with torch_threads(self._threads):
            for batch in batches_by_length(range(len(encoded)), sizes, most_tokens, BATCH_ROWS):
                rows = [torch.tensor(encoded[number]) for number in batch]
                for name, lm in self._lms.items():
                    ranked = self._labels[name](lm, lm.prefill(rows), top)
                    record = self.records[name]
                    for number, best in zip(batch, ranked):
                        answers[number][name] = [_named(answer, record) for answer in best]
        return answers

    def _answered(self, waveforms: Sequence[Waveform], top: int) -> list[Answers]:
        with torch_threads(self._threads):
            units = self._speech([torch.from_numpy(waveform.samples) for waveform in waveforms])
        return self.answers(units, top)

    def _utterance(self, audio: Audio) -> Waveform | BadAudio:
        try:
            recording = _recording(audio)
            length, rate = size_of(recording)
            if length > MOST_SECONDS * rate:
                raise BadAudio(
                    f"is too long for one utterance: {length / rate:,.0f} s, expected at most "
                    f"{MOST_SECONDS:.0f}; cut it, or use --segments"
                )
            return self._read(recording, 0, length)
        except BadAudio as error:
            return error

    def _read(self, recording: Recording, first: int, last: int) -> Waveform:
        waveform = read_waveform(recording, first, last)
        if len(waveform.samples) < (least := self._speech.reader.min_samples):
            raise BadAudio(f"is shorter than one frame ({1000 * least / SAMPLE_RATE:.0f} ms)")
        return waveform


def _recording(audio: Audio) -> Recording:
    return Path(audio) if isinstance(audio, (str, Path)) else array_waveform(audio).samples


def _named(answer: LabelAnswer, record: PromptRecord) -> Prediction:
    return Prediction(
        tuple(record.labels[label]["name"] for label in answer.labels),
        tuple(record.labels[label]["slot"] for label in answer.labels),
        math.exp(answer.score),
        tuple(map(math.exp, answer.label_scores)),
    )


def _unit_files(records: Sequence[PromptRecord], unit_model: UnitModel) -> UnitFiles:
    """Return the files of the unit model that all prompts use. Raises ``UserError`` if prompts have
    different unit models, or if the unit settings of a prompt differ from this workspace.
    """
    first = records[0]
    has_data = first.task in task_names() and not unit_model.shipped_first
    files = UnitFiles(unit_model, load_task(first.task).downstream if has_data else None)
    files.check_exist()
    files.settings.dtype = vars(first.units)["dtype"]
    settings = vars(files.unit_settings())
    for record in records:
        if record.unit_model != first.unit_model:
            raise UserError(
                f"--prompt: {first.task} and {record.task} differ in unit_model: "
                f"{first.unit_model} and {record.unit_model}; answer them one at a time"
            )
        for name, value in vars(record.units).items():
            if value != settings[name] and not (name == "kmeans" and value is None):
                raise UserError(
                    f"--prompt {record.task}: expected {record.unit_model} with {name} {value}, "
                    f"found {settings[name]}; use the unit model that the prompt was trained with"
                )
    return files
