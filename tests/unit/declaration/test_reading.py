"""A model file that can't be used is refused with its file, line, key, what was found and allowed."""

from pathlib import Path

import pytest

from evergreen.declaration import DeclarationError, declared_models, read_declaration

GOOD = """\
name: churn
task: binary_classification
owner: {team: growth, contact: growth@example.com}
data:
  uri: landing/churn/{partition}.parquet
  partition: day
  entities: [customer]
  label: {column: left, delay: 30d}
training:
  estimator: sklearn.linear_model.LogisticRegression
evaluation: {primary: log_loss}
"""


def write(folder: Path, text: str, name: str = "churn") -> Path:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "model.yaml").write_text(text)
    return folder / name / "model.yaml"


def test_a_good_file_is_read_frozen(tmp_path: Path) -> None:
    declaration = read_declaration(write(tmp_path, GOOD))
    assert declaration.primary.name == "log_loss"
    assert declaration.baseline == "prior"
    assert declaration.folder == (tmp_path / "churn").resolve()
    with pytest.raises(ValueError, match="frozen"):
        declaration.name = "other"  # type: ignore[misc]  # that it is refused is the test


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("training:", "trainig:"), 9, ["trainig", "not a key", "Did you mean training?"]),
        (
            ("partition: day", "partition: week"),
            6,
            ["data.partition", "'week'", "'hour', 'day' or 'month'"],
        ),
        (
            ("primary: log_loss", "primary: logloss"),
            11,
            ["evaluation.primary", "'logloss'", "log_loss"],
        ),
        (("primary: log_loss", "primary: r2"), 1, ["r2", "binary_classification", "log_loss"]),
        (("delay: 30d", "delay: soon"), 8, ["data.label.delay", "'soon'", "like 7d"]),
        (("delay: 30d}", "delay: 30d, timestamp: t}"), 8, ["data.label", "exactly one of"]),
        (("{partition}.parquet", "all.parquet"), 5, ["data.uri", "{partition} exactly once"]),
        (("{partition}.parquet", "../{partition}.parquet"), 5, ["data.uri", "climb out"]),
        (("entities: [customer]", "entities: []"), 7, ["data.entities"]),
        (("entities: [customer]", "entities: [left]"), 4, ["left is named for two things"]),
        (("name: churn\n", ""), 1, ["name", "is required and missing"]),
        (("name: churn\n", "name: churn\nname: again\n"), 2, ["'name' stands twice"]),
        (("name: churn", "name: other"), None, ["name is 'other'", "folder is 'churn'"]),
        (("task:", "task: ["), None, ["not valid YAML"]),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, change: tuple[str, str], line: int | None, words: list[str]
) -> None:
    file = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(DeclarationError) as caught:
        read_declaration(file)
    message = str(caught.value)
    assert (f"{file}:{line}:" if line else f"{file}") in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("gate: {margin: -1}", ["gate.margin", "greater than or equal to 0"]),
        ("gate: {confidence: 2}", ["gate.confidence"]),
        ("gate: {floors: {roc_auc: 0.5}}", ["gate.floors bounds roc_auc", "doesn't measure"]),
        ("gate: {slice_floors: {log_loss: 1.0}}", ["evaluation.slices"]),
        ("gate: {floors: {log_loss: .nan}}", ["gate.floors.log_loss", "finite"]),
        ("triggers: {schedule: often}", ["triggers.schedule", "cron"]),
        ("triggers: {budget: {runs: 0, per: 7d}}", ["triggers.budget.runs"]),
        ("compute: {trian: {pool: big}}", ["compute", "'train'"]),
        ("validation: {quarantine_at_most: 3}", ["validation.quarantine_at_most"]),
        ("data_: 1", ["data_", "not a key"]),
    ],
)
def test_nonsense_values_are_refused(tmp_path: Path, extra: str, words: list[str]) -> None:
    with pytest.raises(DeclarationError) as caught:
        read_declaration(write(tmp_path, GOOD + extra + "\n"))
    for word in words:
        assert word in str(caught.value)


def test_on_is_a_word(tmp_path: Path) -> None:
    extra = "gate: {approval: {on: [bootstrap]}}\nvalidation: {quarantine_at_most: 0}\n"
    declaration = read_declaration(write(tmp_path, GOOD + extra))
    assert not isinstance(declaration.gate.approval, str)
    assert declaration.gate.approval.on == ("bootstrap",)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    bad = GOOD.replace("partition: day", "partition: week").replace("delay: 30d", "delay: soon")
    with pytest.raises(DeclarationError) as caught:
        read_declaration(write(tmp_path, bad))
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"model\.yaml: no such file"):
        read_declaration(tmp_path / "nothing" / "model.yaml")


def test_only_the_asked_for_model_is_read(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    write(tmp_path, "not: usable", name="broken")
    write(tmp_path, "not: usable", name="_template")
    assert [d.name for d in declared_models(tmp_path, "churn.retrain")] == ["churn"]
    with pytest.raises(DeclarationError, match="broken"):
        list(declared_models(tmp_path))
