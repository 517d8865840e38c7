"""A linear classifier on the n-grams of the units: what a prompt should be better than.

Uni- and bigram counts of the units as they stand in the rows, a linear SVM (liblinear, squared
hinge, one against the rest), its C chosen on valid. An utterance's labels together are one class
(IC: an intent), so all of them are right or none. Rows that train holds many times (KS draws with
replacement) count as often.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import MISSING
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.svm import LinearSVC

from baselines.classifiers.answers import answers_path, card_path, parse_flags, write_answers
from pipeline.config import load_config
from pipeline.errors import UserError, run
from pipeline.files import sha256, write_json
from pipeline.rows import SPLITS, Row, read_rows
from pipeline.runs import provenance
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, find_pairs

CONFIG = Path(__file__).resolve().parent / "config" / "unit_ngrams.yaml"


@dataclass
class Settings:
    """config/unit_ngrams.yaml, which says what each means."""

    ngrams: int = MISSING
    counts: str = MISSING
    costs: list[float] = MISSING
    seed: int = MISSING


def load_settings(overrides: list[str]) -> Settings:
    settings = load_config(Settings, CONFIG, overrides)
    if settings.ngrams < 1 or not settings.costs or min(settings.costs) <= 0:
        raise UserError("--set ngrams, costs: expected ngrams of 1 or more and positive costs")
    if settings.counts not in ("log", "raw"):
        raise UserError(f"--set counts={settings.counts}: expected log or raw")
    return settings


class NgramClassifier:
    """The classifier of one C. Rows' labels are its classes."""

    def __init__(self, settings: Settings, train: list[Row]) -> None:
        """Count the n-grams of ``train``; others are unknown later."""
        self._settings = settings
        weights = Counter((row.units, row.labels) for row in train)
        units, self._labels = zip(*weights)
        self._weights = list(weights.values())
        self._vectorizer = CountVectorizer(
            ngram_range=(1, settings.ngrams), token_pattern=r"\S+", lowercase=False, dtype=float
        )
        self._vectorizer.fit(units)
        self._train = self._features(units)

    def fit(self, cost: float) -> LinearSVC:
        svm = LinearSVC(C=cost, dual=True, random_state=self._settings.seed)
        return svm.fit(self._train, self._labels, self._weights)

    def predict(self, svm: LinearSVC, rows: list[Row]) -> list[str]:
        return svm.predict(self._features([row.units for row in rows])).tolist()

    def _features(self, units: list[str] | tuple[str, ...]) -> csr_matrix:
        counts = self._vectorizer.transform(units)
        return counts.log1p() if self._settings.counts == "log" else counts


def classify(args: argparse.Namespace, pair: Pair, settings: Settings) -> None:
    """Choose C on valid, then answer and score the test split."""
    workspace = Workspace(args.workspace)
    downstream, unit_model = pair.config.downstream, pair.unit_model
    paths = {split: workspace.rows(downstream, unit_model, split) for split in SPLITS}
    rows = {split: sha256(path) for split, path in paths.items()}
    config = asdict(settings)
    card = {"task": pair.task, "unit_model": unit_model, "config": config, "rows": rows}
    train, valid, test = (list(read_rows(path)) for path in paths.values())
    if len({row.labels for row in train}) < 2:
        raise UserError(f"{downstream}: train has one class only; nothing to classify")
    classifier = NgramClassifier(settings, train)
    print(f"{pair.task} {unit_model}: {len(train):,} rows of train")
    best, best_svm = -1.0, None
    for cost in settings.costs:
        svm = classifier.fit(cost)
        answers = classifier.predict(svm, valid)
        right = sum(answer == row.labels for answer, row in zip(answers, valid, strict=True))
        score = 100 * right / len(valid)
        print(f"  C {cost:g}: {score:.2f} % right on valid", flush=True)
        if score > best:
            best, best_svm = score, svm
    run_name = workspace, pair.task, unit_model, "ngrams", args.date
    path = answers_path(*run_name)
    files, labels = zip(*((row.file, row.labels) for row in test))
    accuracy = write_answers(path, files, labels, classifier.predict(best_svm, test))
    card |= {"cost": best_svm.C, "valid": {"accuracy": best}, "test": {"accuracy": accuracy}}
    write_json(card_path(*run_name), card | {"made_by": provenance()})
    print(f"{pair.task} {unit_model}: C {best_svm.C:g}, {accuracy:.2f} % right on test -> {path}")


def main() -> None:
    args = parse_flags(__doc__, CONFIG)
    settings = load_settings(args.set)
    for pair in find_pairs(args):
        if not pair.config.is_sequence:  # a text is no class
            classify(args, pair, settings)
    print(f"next: python ulm_prompt/cal_acc.py --sample_date {args.date}")


if __name__ == "__main__":
    run(main)
