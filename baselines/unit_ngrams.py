"""A linear classifier on the n-grams of the units. A prompt should be better than this baseline.

The features are uni- and bigram counts of the units in the rows. The classifier is a linear SVM
(liblinear, squared hinge, one against the rest) whose C is chosen on valid. All labels of an
utterance together are one class (IC: an intent), so they are all correct or all wrong. A row that
occurs n times in train (KS draws with replacement) has the weight n.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from omegaconf import MISSING
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

from baselines.classifiers.answers import finish, parse_flags, record_path
from pipeline.errors import UserError, run
from pipeline.files import sha256
from pipeline.rows import SPLITS, Row, read_rows
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair, find_pairs

CONFIG = "unit_ngrams.yaml"


@dataclass
class Settings:
    """The settings in config/unit_ngrams.yaml, which explains them."""

    ngrams: int = MISSING
    counts: str = MISSING
    costs: list[float] = MISSING
    seed: int = MISSING


def classifiers(settings: Settings, train: Sequence[Row]) -> Iterator[Pipeline]:
    """Yield a classifier for each C, from texts of units to labels. It ignores n-grams that
    ``train`` does not contain.
    """
    weights = Counter((row.units, row.labels) for row in train)
    units, labels = zip(*weights)
    counter = CountVectorizer(
        ngram_range=(1, settings.ngrams), token_pattern=r"\S+", lowercase=False, dtype=float
    )
    logarithm = (lambda counts: counts.log1p()) if settings.counts == "log" else None
    features = make_pipeline(counter, FunctionTransformer(logarithm, accept_sparse=True))
    table = features.fit_transform(units)
    for cost in settings.costs:
        svm = LinearSVC(C=cost, dual=True, random_state=settings.seed)
        yield make_pipeline(features, svm.fit(table, labels, list(weights.values())))


def classify(workspace: Workspace, pair: Pair, date: str, settings: Settings) -> None:
    """Choose C on valid, then answer and score the test split."""
    name = f"{pair.task} {pair.unit_model}"
    data = pair.config.downstream, pair.unit_model
    paths = {split: workspace.rows(*data, split) for split in SPLITS}
    hashes = {split: sha256(path) for split, path in paths.items()}
    train, valid, test = (list(read_rows(path)) for path in paths.values())
    if len({row.labels for row in train}) < 2:
        raise UserError(f"{pair.config.downstream}: train has one class only; expected at least 2")
    print(f"{name}: {len(train):,} rows of train")
    best, best_classifier = -1.0, None
    for cost, classifier in zip(settings.costs, classifiers(settings, train)):
        answers = classifier.predict([row.units for row in valid])
        correct = sum(answer == row.labels for answer, row in zip(answers, valid, strict=True))
        accuracy = 100 * correct / len(valid)
        print(f"  C {cost:g}: {accuracy:.2f} % right on valid", flush=True)
        if accuracy > best:
            best, best_classifier, best_cost = accuracy, classifier, cost
    record = {
        "task": pair.task,
        "unit_model": pair.unit_model,
        "config": asdict(settings),
        "rows": hashes,
        "cost": best_cost,
        "valid": {"accuracy": best},
    }
    answers = best_classifier.predict([row.units for row in test]).tolist()
    record_file = record_path(workspace, pair.task, pair.unit_model, "ngrams", date)
    finish(workspace, pair, record_file, date, test, answers, record)


def main() -> None:
    args = parse_flags(__doc__, Settings, CONFIG)
    if args.settings.counts not in ("log", "raw"):
        raise UserError(f"--set counts={args.settings.counts}: expected log or raw")
    for pair in find_pairs(args):
        if not pair.config.is_text:  # a classifier cannot answer with a text
            classify(Workspace(args.workspace), pair, args.date, args.settings)
    print(f"next: python ulm_prompt/cal_acc.py --sample_date {args.date}")


if __name__ == "__main__":
    run(main)
