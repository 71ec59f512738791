"""A classifier tells texts apart where something does, and only there."""

import numpy as np
import pandas as pd
import pytest

from evergreen.lifecycle.textdrift import drawn, separation

WORDS = [f"word{k}" for k in range(40)]


def texts(seed: int, words: list[str] = WORDS, rows: int = 400) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, 10)) for _ in range(rows)]


def test_the_same_kind_of_text_is_not_told_apart() -> None:
    assert separation(texts(1), texts(2), seed=0) == pytest.approx(0.5, abs=0.08)


def test_other_words_are() -> None:
    assert separation(texts(1), texts(2, WORDS[20:]), seed=0) > 0.9
    assert separation(texts(1), texts(2, ["other"]), seed=0) == 1.0


def test_a_small_side_is_no_reason() -> None:
    assert separation(texts(1), texts(2, rows=30), seed=0) < 0.65


@pytest.mark.parametrize(
    ("learned", "found"),
    [([], []), (["a"], texts(1)), (texts(1), []), (["", "?!"] * 9, ["...", ""] * 9)],
)
def test_nothing_to_tell_by_is_one_half(learned: list[str], found: list[str]) -> None:
    assert separation(learned, found, seed=0) == 0.5


def test_one_letter_and_other_scripts_are_words() -> None:
    assert separation(["a b"] * 50, ["c d"] * 50, seed=0) == 1.0
    assert separation(["雪 が 降る"] * 50, ["晴れ です"] * 50, seed=0) == 1.0


def test_a_sample_is_seeded_and_keeps_its_order() -> None:
    values = pd.Series([*map(str, range(1_000)), None])
    some = drawn(values, 100, seed=1)
    assert some == drawn(values, 100, seed=1) != drawn(values, 100, seed=2)
    assert list(map(int, some)) == sorted(map(int, some))
    assert drawn(values, 2_000, seed=1) == tuple(map(str, range(1_000)))
