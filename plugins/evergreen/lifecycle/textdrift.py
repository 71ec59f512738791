"""Text has drifted when a classifier can tell the learned texts from the window's.

Its cross-validated ROC AUC is 0.5 where nothing tells them apart and 1 where everything does. The
idea is Evidently's; here a seeded sample of each side is cut into folds, so that each text is
answered for by a model that hasn't seen it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import pandas as pd

FOLDS = 5
_WORD = r"(?u)\b\w+\b"
#: The words that count, by frequency: enough to tell texts apart, few enough for any column.
_WORDS = 20_000


@dataclass(frozen=True)
class TextProfile:
    """A seeded sample of a column's learned texts."""

    kind: ClassVar[Literal["text"]] = "text"
    texts: tuple[str, ...]
    count: int
    missing: int


def drawn(values: pd.Series, size: int, seed: int) -> tuple[str, ...]:
    """A seeded sample of at most ``size`` of the texts that are there, in their order."""
    import numpy as np

    there = values.dropna()
    if len(there) > size:
        chosen = np.random.default_rng(seed).choice(len(there), size=size, replace=False)
        there = there.iloc[np.sort(chosen)]
    return tuple(map(str, there))


def separation(learned: Sequence[str], found: Sequence[str], seed: int) -> float:
    """The ROC AUC of a logistic regression on TF-IDF that tells ``found`` from ``learned``.

    0.5 when there is nothing to tell by: no word, or fewer than two texts of a side.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

    texts = [*learned, *found]
    folds = min(FOLDS, len(learned), len(found))
    if folds < 2 or not any(re.search(_WORD, text) for text in texts):
        return 0.5
    side = np.repeat([0, 1], [len(learned), len(found)])
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=_WORD, max_features=_WORDS)
    cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
    model = LogisticRegression(class_weight="balanced", max_iter=200)
    with threadpool_limits(1):  # small fits: threads would only wait for each other
        told = cross_val_predict(
            model, words.fit_transform(texts), side, cv=cut, method="predict_proba"
        )
    return float(roc_auc_score(side, told[:, 1]))
