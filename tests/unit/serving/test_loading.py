"""The cache of versions on a replica's disk: what is taken from it, what stays, what is swept."""

from pathlib import Path

import pytest

from evergreen.errors import CorruptError
from evergreen.lifecycle import registry
from evergreen.serving.loading import CURRENT, KEPT, Cache
from tests.unit.serving.registered import Life, answer, bring_back, flip, until


def _served_before(life: Life) -> str:
    """A champion's number, once a replica has served it and stopped."""
    number = life.register(1.0)
    life.point(number)
    before = life.replica()
    before.start()
    before.stop()
    return number


def test_a_start_without_registry_takes_the_champion_from_the_cache(life: Life) -> None:
    number = _served_before(life)
    away = life.workspace.home / "mlflow.db"
    versions = life.replica(tracking_uri=f"sqlite:///{away}")
    versions.start()
    state = versions.state()
    assert (state["version"], state["wanted"], state["from_cache"]) == (number, number, True)
    assert "there is no such file" in state["registry_problem"]
    assert not away.exists()
    assert answer(versions) == pytest.approx(1.0)
    cached = versions.champion
    bring_back(life, away)
    until(lambda: not versions.state()["from_cache"])
    until(lambda: versions.state()["registry_problem"] is None)  # once each alias has been asked
    assert versions.champion is cached, "the registry says that it is the very same"


def test_a_changed_cache_is_not_served(life: Life) -> None:
    number = _served_before(life)
    (folder,) = life.kept.glob(f"{number}-*")
    flip(folder / "model.skops")
    versions = life.replica(tracking_uri=f"sqlite:///{life.workspace.home}/nowhere.db")
    versions.start()
    assert versions.champion is None
    again = life.replica()
    again.start()
    assert answer(again) == pytest.approx(1.0), "it is downloaded anew"


def test_the_cache_keeps_the_versions_used_last_and_those_in_memory(life: Life) -> None:
    numbers = [life.register(float(n)) for n in range(KEPT + 3)]
    versions = life.replica()
    versions.start()
    for number in numbers:
        life.point(number)
        until(lambda number=number: versions.state()["version"] == number)

    def kept() -> set[str]:
        return {path.name.split("-")[0] for path in life.kept.iterdir() if path.is_dir()}

    until(lambda: kept() == set(numbers[-KEPT:]))  # a version answers before old ones are removed
    assert (life.kept / CURRENT).exists()
    assert not list(life.kept.glob(".*")), "nothing is left aside"


def test_what_a_killed_process_left_aside_is_removed(tmp_path: Path) -> None:
    left, alive = tmp_path / ".7-abc.999999999-00", tmp_path / ".8-abc.1-00"
    left.mkdir()
    alive.mkdir()
    (tmp_path / f".{CURRENT}.999999999-00").write_text("{")
    Cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [alive.name]


def test_a_torn_note_of_the_champion_is_none(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for content in ("", "{", "[]", '{"version": "7"}', '{"version": "7", "digest": "abc"}'):
        (tmp_path / CURRENT).write_text(content)
        assert cache.champion() is None


def test_two_replicas_may_download_into_one_cache(life: Life) -> None:
    number = life.register(1.0)
    digest = registry.registered_digest(life.registry, life.name, number)
    one, other = Cache(life.kept), Cache(life.kept)
    first = one.download(life.registry, life.name, number, digest)
    assert other.download(life.registry, life.name, number, digest) == first
    with pytest.raises(CorruptError, match="they were changed"):
        one.download(life.registry, life.name, number, "0" * 64)
    assert [path for path in life.kept.iterdir() if path.name.startswith(".")] == []
