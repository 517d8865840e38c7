"""Topics: names for what an utterance is about, found without labels, that a small unit LM learns
to tell.

A released unit LM has read so much that its states hold an utterance's meaning; a small one sees a
few minutes of text and hardly looks back. Asked to continue ``units <s>`` with the utterance's
topics, it learns to.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

WIDTH = 96  # dimensions that an utterance's n-gram weights are reduced to
CLUSTERS = 100  # of each codebook; a topic's name is a unit


def topics(
    train: Sequence[str], valid: Sequence[str], codebooks: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster utterances (lines of units) by the unit n-grams they hold.

    TF-IDF of uni- to trigrams, reduced by SVD to the unit sphere; each codebook is a k-means in a
    random half of the dimensions. Learned on ``train``. Returns (utterances, codebooks) of integers
    below ``CLUSTERS`` for each split.
    """
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 3), token_pattern=r"\S+", min_df=min(10, 1 + len(train) // 1000),
        sublinear_tf=True, max_features=15_000,
    )  # fmt: skip
    weights = vectorizer.fit_transform(train)
    width = max(1, min(WIDTH, weights.shape[1] - 1, len(train)))
    reduce = TruncatedSVD(width, random_state=seed, n_iter=2)
    places = [_unit_length(reduce.fit_transform(weights))]
    places.append(_unit_length(reduce.transform(vectorizer.transform(valid))))
    generator = np.random.default_rng(seed)
    found: list[list[np.ndarray]] = [[], []]
    for book in range(codebooks):
        directions = np.linalg.qr(generator.normal(size=(width, width)))[0][:, : (width + 1) // 2]
        kmeans = MiniBatchKMeans(
            min(CLUSTERS, 2 + len(train) // 20, len(train)),
            random_state=seed + book,
            batch_size=2048,
            n_init=1,
            max_iter=15,
        )
        kmeans.fit(places[0] @ directions)
        for codes, place in zip(found, places):
            codes.append(kmeans.predict(place @ directions))
    return np.stack(found[0], axis=1), np.stack(found[1], axis=1)


def _unit_length(places: np.ndarray) -> np.ndarray:
    return places / (np.linalg.norm(places, axis=1, keepdims=True) + 1e-9)
