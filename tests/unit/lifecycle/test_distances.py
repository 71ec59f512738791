"""Distances equal SciPy's and Evidently's, obey their laws, and are defined for odd columns."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon as scipy_jensenshannon

from evergreen.declaration import Declaration
from evergreen.errors import DeclarationError
from evergreen.lifecycle.categoryprofiles import Categories, CategoryProfile
from evergreen.lifecycle.contracts import ColumnDrift
from evergreen.lifecycle.distances import ColumnProfile, compare_column
from evergreen.lifecycle.numberprofiles import GRID, NumberProfile, Numbers
from tests.builders import declare

RNG = np.random.default_rng(20130101)
DRAWS: dict[str, Any] = {
    "normal": lambda n: RNG.normal(size=n),
    "long tail": lambda n: RNG.lognormal(0.0, 2.0, size=n),
    "many zeros": lambda n: np.where(RNG.random(n) < 0.7, 0.0, RNG.exponential(size=n)),
    "two humps": lambda n: np.where(RNG.random(n) < 0.5, -10, 10) + RNG.normal(size=n),
    "between humps": lambda n: 0.1 * RNG.normal(size=n),
    "hours": lambda n: RNG.integers(0, 24, size=n).astype(float),
    "big": lambda n: 1e9 + RNG.normal(size=n),
}
PAIRS = [(a, a) for a in DRAWS] + [("two humps", "between humps"), ("hours", "normal")]
DISTANCES = ("wasserstein", "jensenshannon", "psi")
numbers = st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=1, max_size=80)


def series(values: Any) -> pd.Series:
    return pd.Series(values, dtype="float64")


def text(values: Any) -> pd.Series:
    return pd.Series(values, dtype=object)


def number_distance(method: str, learned: Any, now: Any) -> float:
    return NumberProfile.of(series(learned)).distance(method, Numbers.of(series(now)))


def category_distance(method: str, learned: Any, now: Any) -> float:
    return CategoryProfile.of(text(learned)).distance(method, Categories.of(text(now)))


def scipy_wasserstein(learned: Any, now: Any) -> float:
    return float(stats.wasserstein_distance(learned, now) / max(np.std(learned), 0.001))


def numpy_jensenshannon(learned: Any, now: Any) -> float:
    edges = np.histogram_bin_edges(np.concatenate([learned, now]), bins="sturges")
    shares = (np.histogram(side, edges)[0] / len(side) for side in (learned, now))
    return float(scipy_jensenshannon(*shares))


@pytest.mark.parametrize(("before", "after"), PAIRS)
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_what_fits_the_grid_is_exact(before: str, after: str, shift: float) -> None:
    learned, now = DRAWS[before](3_000), DRAWS[after](2_000) + shift
    assert number_distance("wasserstein", learned, now) == pytest.approx(
        scipy_wasserstein(learned, now), rel=1e-9, abs=1e-6 if before == "big" else 1e-12
    )
    assert number_distance("ks", learned, now) == stats.ks_2samp(learned, now).pvalue
    assert number_distance("jensenshannon", learned, now) == pytest.approx(
        numpy_jensenshannon(learned, now), abs=1e-12
    )


@pytest.mark.parametrize(("before", "after"), PAIRS)
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_grid_stands_for_many_rows(before: str, after: str, shift: float) -> None:
    learned, now = DRAWS[before](200_000), DRAWS[after](100_000) + shift
    assert len(NumberProfile.of(series(learned)).grid) <= GRID
    assert number_distance("wasserstein", learned, now) == pytest.approx(
        scipy_wasserstein(learned, now), rel=0.005, abs=0.001
    )
    assert number_distance("ks", learned, now) == pytest.approx(
        stats.ks_2samp(learned, now).pvalue, abs=0.05
    )
    assert number_distance("jensenshannon", learned, now) == pytest.approx(
        numpy_jensenshannon(learned, now), abs=0.01
    )


def test_chisquare_is_scipys() -> None:
    learned, now = (
        RNG.choice(list("abcd"), 3_000),
        RNG.choice(list("abcd"), 700, p=[0.28, 0.24, 0.24, 0.24]),
    )
    expected = [(learned == c).sum() * 700 / 3_000 for c in "abcd"]
    found = [(now == c).sum() for c in "abcd"]
    assert category_distance("chisquare", learned, now) == pytest.approx(
        stats.chisquare(found, expected).pvalue, rel=1e-9
    )
    assert category_distance("chisquare", learned, [*now, "new"]) == 0.0
    assert category_distance("chisquare", ["a"] * 9, ["a"] * 5) == 1.0


def test_psi_of_numbers_is_over_the_learned_deciles() -> None:
    learned, now = RNG.normal(size=3_000), RNG.normal(0.5, 1.2, size=2_000)
    edges = [-np.inf, *np.quantile(learned, np.arange(1, 10) / 10, method="inverted_cdf"), np.inf]
    p, q = (np.histogram(side, edges)[0] / len(side) for side in (learned, now))
    assert number_distance("psi", learned, now) == pytest.approx(((p - q) * np.log(p / q)).sum())


def evidently_distances(kind: str, method: str, learned: pd.Series, now: pd.Series) -> float:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    definition = DataDefinition(**{f"{kind}_columns": ["c"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of the infinite values in what it plots
        sides = [
            Dataset.from_pandas(pd.DataFrame({"c": side}), data_definition=definition)
            for side in (now, learned)
        ]
        snapshot = Report([ValueDrift(column="c", method=method)]).run(*sides)
    return float(snapshot.dict()["metrics"][0]["value"])


@pytest.mark.parametrize("method", ["wasserstein", "ks", "jensenshannon"])
@pytest.mark.parametrize("values", ["normal", "long tail", "hours"])
def test_numbers_are_evidentlys(method: str, values: str) -> None:
    learned, now = series(DRAWS[values](2_500)), series(DRAWS[values](1_500) + 0.1)
    learned[:40], now[:7] = np.nan, np.inf
    assert number_distance(method, learned, now) == pytest.approx(
        evidently_distances("numerical", method, learned, now), rel=1e-9
    )


@pytest.mark.parametrize("method", ["psi", "jensenshannon", "chisquare"])
@pytest.mark.parametrize("new", [[], ["x"] * 30])
def test_categories_are_evidentlys(method: str, new: list[str]) -> None:
    learned = text([*RNG.choice(list("abcde"), 2_500), *["rare"] * 3, None])
    now = text([*RNG.choice(list("abcde"), 1_500, p=[0.3, 0.2, 0.2, 0.2, 0.1]), *new, None])
    assert category_distance(method, learned, now) == pytest.approx(
        evidently_distances("categorical", method, learned, now), rel=1e-9
    )


@pytest.mark.parametrize("method", DISTANCES)
@given(learned=numbers, now=numbers)
def test_numbers_laws(method: str, learned: list[float], now: list[float]) -> None:
    distance = number_distance(method, learned, now)
    assert 0.0 <= distance < math.inf
    assert number_distance(method, learned, learned) == pytest.approx(0.0, abs=1e-9)
    assert number_distance(method, learned[::-1], sorted(now)) == distance


@given(learned=numbers, now=numbers, one=st.floats(0, 1e6), more=st.floats(0, 1e6))
def test_shifting_away_never_brings_nearer(
    learned: list[float], now: list[float], one: float, more: float
) -> None:
    lift = max(learned) - min(now) + one  # from where on all of now lies above
    near, far = (
        number_distance("wasserstein", learned, series(now) + by) for by in (lift, lift + more)
    )
    assert far >= near * (1 - 1e-9)


@given(learned=numbers, now=numbers)
def test_wasserstein_is_scipys_for_any_numbers(learned: list[float], now: list[float]) -> None:
    assert number_distance("wasserstein", learned, now) == pytest.approx(
        scipy_wasserstein(learned, now), rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize("method", ["jensenshannon", "psi"])
@given(
    learned=st.lists(st.sampled_from("abcdef"), min_size=1),
    now=st.lists(st.sampled_from("abcdefgh"), min_size=1),
    data=st.data(),
)
def test_categories_laws(method: str, learned: list[str], now: list[str], data: Any) -> None:
    distance = category_distance(method, learned, now)
    assert 0.0 <= distance < math.inf
    assert category_distance(method, learned, learned) == pytest.approx(0.0, abs=1e-12)
    assert category_distance(method, learned, data.draw(st.permutations(now))) == distance


NOTHING = [np.nan] * 50
ODD: dict[str, list[float]] = {
    "missing": NOTHING,
    "constant": [3.0] * 50,
    "another constant": [4.0] * 50,
    "infinite": [np.inf, -np.inf] * 25,
    "some infinite": [np.inf, *range(49)],
    "big integers": [2.0**63 + 2.0**12 * k for k in range(50)],
    "huge": [1e308 * (-1) ** k for k in range(50)],
    "empty": [],
    "numbers": [float(k) for k in range(50)],
    "tiny steps": [1.0 + 2.0**-52 * k for k in range(50)],
}


@pytest.fixture(scope="module")
def declaration(tmp_path_factory: pytest.TempPathFactory) -> Declaration:
    return declare(tmp_path_factory.mktemp("model"))


def compared(declaration: Declaration, learned: pd.Series, now: pd.Series) -> ColumnDrift:
    number = learned.dtype != object
    profile: ColumnProfile = NumberProfile.of(learned) if number else CategoryProfile.of(learned)
    return compare_column(declaration, "c", profile, now, importance=0.5)


@pytest.mark.parametrize("method", [*DISTANCES, "ks"])
@pytest.mark.parametrize("before", ODD)
@pytest.mark.parametrize("after", ODD)
def test_odd_columns_have_an_answer(tmp_path: Path, method: str, before: str, after: str) -> None:
    declared = declare(tmp_path, monitoring={"drift": {"numeric": method}})
    found = compared(declared, series(ODD[before]), series(ODD[after]))
    assert math.isfinite(found.distance)
    assert found.distance >= 0.0
    assert all(0.0 <= rate <= 1.0 for rate in (found.missing, found.out_of_range or 0.0))
    if before == after:
        assert not found.drifted
    if {before, after} == {"constant", "another constant"}:
        assert found.drifted


def test_booleans_and_integers_are_numbers(declaration: Declaration) -> None:
    flags = pd.Series([True, False, True, None], dtype=object)
    assert not compared(declaration, series([1, 0, 1, np.nan]), flags).drifted
    assert not compared(declaration, series([1, 0, 1]), pd.Series([True, False, True])).drifted
    large = pd.Series([2**62, 2**62 + 2**30] * 9, dtype="Int64")
    assert compared(declaration, series(large), large).distance == 0.0


def test_a_category_is_known_by_name(declaration: Declaration) -> None:
    learned = CategoryProfile.of(series([1.0, 0.0, 1.0]))
    for now in (pd.Series([1, 0, 1]), pd.Series([True, False, True]), text(["1", "0", "1"])):
        assert compare_column(declaration, "late", learned, now).distance == 0.0
    one = text(["a"] * 30)
    assert not compared(declaration, one, one).drifted
    assert compared(declaration, one, text(["b"] * 30)).drifted


@pytest.mark.parametrize("gone", [series(NOTHING), series([np.inf] * 50)])
def test_a_column_that_is_gone_has_drifted(gone: pd.Series, tmp_path: Path) -> None:
    lenient = declare(tmp_path, monitoring={"drift": {"missing": 1.0}})
    found = compared(lenient, series([*range(5), *[np.nan] * 95]), gone)
    assert found.drifted
    assert found.because == ("missing in 100.0% of rows, 95.0% learned (may rise by 100%)",)
    assert not compared(lenient, series(NOTHING), gone).drifted


def test_each_reason_is_said_with_its_bound(declaration: Declaration) -> None:
    learned = series(np.linspace(0, 1, 1_000))
    now = series([*np.linspace(0, 1, 700), *[np.nan] * 150, *[1.001] * 150])
    found = compared(declaration, learned, now)
    assert (found.missing, found.out_of_range, found.missing_reference) == (0.15, 0.15, 0.0)
    assert found.because == (
        f"wasserstein {found.distance:.3f} (bound: 0.1)",
        "missing in 15.0% of rows, 0.0% learned (may rise by 10%)",
        "15.0% of rows beyond the learned 0 to 1 (bound: 10%)",
    )
    strange = compared(
        declaration, text(["a", "b"] * 50), text([*"ab" * 40, *"zzzzzzzzzzzzzzyyyyyy"])
    )
    assert strange.new_categories == 0.2
    assert "20.0% of rows in categories never learned such as z, y (bound: 10%)" in strange.because
    assert strange.importance == 0.5


def test_a_p_value_below_its_bound_is_drift(tmp_path: Path) -> None:
    declared = declare(
        tmp_path, monitoring={"drift": {"columns": {"c": {"method": "ks", "threshold": 0.01}}}}
    )
    learned = series(RNG.normal(size=500))
    same, other = (compared(declared, learned, learned + by) for by in (0.0, 1.0))
    assert (same.method, same.threshold, same.drifted) == ("ks", 0.01, False)
    assert (other.drifted, other.distance < 0.01) == (True, True)
    assert other.because[0].startswith("ks p-value")


def test_a_method_for_another_kind_is_refused(tmp_path: Path) -> None:
    declared = declare(tmp_path, monitoring={"drift": {"columns": {"c": {"method": "ks"}}}})
    with pytest.raises(DeclarationError, match=r"columns\.c: ks is not for a category column"):
        compared(declared, text(["a"]), text(["a"]))


@settings(max_examples=50)
@given(
    learned=st.lists(st.integers(0, 30), min_size=1, max_size=200),
    now=st.lists(st.integers(0, 40), min_size=1, max_size=200),
)
def test_rare_categories_are_counted_together(learned: list[int], now: list[int]) -> None:
    whole = CategoryProfile.of(text([f"c{k}" for k in learned]))
    some = CategoryProfile.of(text([f"c{k}" for k in learned]), kept=5)
    found = Categories.of(text([f"c{k}" for k in now]))
    assert some.count == whole.count
    assert len(some.counts) + some.rest_values == len(whole.counts)
    # What is known of less can't be further.
    assert some.jensenshannon(found) <= whole.jensenshannon(found) + 1e-9
    unnamed = sum(rows for name, rows in found.counts.items() if name not in some.counts)
    assert 0.0 <= some.unlearned(found)[0] <= unnamed / len(now)
    assert some.unlearned(Categories.of(text([f"c{k}" for k in learned])))[0] == pytest.approx(0.0)
