"""Profiles are Feast's own files, read or refused plainly; sources are named for their reader."""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from feast.infra.offline_stores.contrib.athena_offline_store.athena_source import AthenaSource
from feast.repo_config import load_repo_config

from evergreen.errors import DeclarationError, JoinError, UnavailableError
from evergreen.lifecycle import features, featuresources, featurestore
from evergreen.lifecycle.featurestore import Profile, read_profile
from tests.builders import declare, workspace_in
from tests.feature_models import MODULE, declare_flights

SHIPPED = Path(__file__).parents[3] / "include" / "feast"
VARIABLES = {
    "EVERGREEN_FEAST_REGISTRY_URL": "postgresql+psycopg://me:hidden@127.0.0.1:1/feast",
    "EVERGREEN_FEAST_REDIS": "127.0.0.1:1,password=hidden",
    "EVERGREEN_SPARK_MASTER": "local[1]",
    "EVERGREEN_ATHENA_DATABASE": "models",
    "EVERGREEN_ATHENA_WORKGROUP": "primary",
    "EVERGREEN_ATHENA_STAGING": "s3://bucket/athena",
    "EVERGREEN_REDSHIFT_WORKGROUP": "main",
    "EVERGREEN_REDSHIFT_DATABASE": "dev",
    "EVERGREEN_REDSHIFT_ROLE": "arn:aws:iam::123456789012:role/redshift",
    "EVERGREEN_REDSHIFT_STAGING": "s3://bucket/redshift",
    "AWS_DEFAULT_REGION": "eu-central-1",
}
S3 = ["s3://bucket/tables/a.parquet", "s3://bucket/tables/b's.parquet"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "feature_store.yaml"


@pytest.mark.parametrize("name", [file.name for file in sorted(SHIPPED.glob("*.yaml"))])
def test_feast_reads_every_shipped_profile_as_we_do(name: str, tmp_path: Path) -> None:
    feasts = load_repo_config(tmp_path, SHIPPED / name)
    profile = read_profile(SHIPPED / name)
    ours = featurestore.repo_config(profile, "example", profile.sections)
    for section in ("registry", "offline_store", "online_store"):
        assert getattr(ours, section) == getattr(feasts, section)
    assert (ours.provider, ours.project) == (feasts.provider, "example")
    assert "hidden" not in repr(profile)


def test_the_shipped_embedded_profile_says_what_is_used_without_one(tmp_path: Path) -> None:
    assert read_profile(SHIPPED / "embedded.yaml").sections == read_profile(None).sections
    assert {file.stem for file in SHIPPED.glob("*.yaml")} == {
        "embedded", "redis", "dynamodb", "spark", "athena", "redshift"
    }  # fmt: skip


def test_sections_that_are_left_out_are_as_embedded(written: Path) -> None:
    written.write_text("online_store: {type: redis, connection_string: '$EVERGREEN_FEAST_REDIS'}\n")
    profile = read_profile(written)
    assert (profile.registry, profile.offline) == ("file", featurestore.DUCKDB)
    assert profile.sections["online_store"]["connection_string"] == "127.0.0.1:1,password=hidden"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("offline_store: {type: spark}", r"offline_store.type is 'spark'; allowed are .*sparkjoin"),
        ("offline_store: {type: dask}", "offline_store.type is 'dask'"),
        ("offline_store: spark", "offline_store.type is 'spark'"),
        ("online_store: {type: milvus}", "online_store.type is 'milvus'; allowed are sqlite, redis"),
        ("registry: data/registry.db", "registry.registry_type is 'data/registry.db'"),
        ("registry: {registry_type: file, path: here}", "registry.path is set; leave it out"),
        ("online_store: {type: sqlite, path: here}", "online_store.path is set; leave it out"),
        ("feature_server: {type: local}", "has feature_server; allowed are registry,"),
        ("[]", "list; allowed is a mapping"),
        ("a: [", "no YAML once variables are filled in, at 2"),
        ("online_store: {type: redis, connection_string: '${NOT_SET_1},$NOT_SET_2'}",
         "takes NOT_SET_1, NOT_SET_2 from the environment"),
        ("online_store: {type: redis, connection_string: '${NOT_SET:localhost:6379}'}",
         "takes NOT_SET:localhost:6379 from the environment, where it isn't set.*and no defaults"),
    ],
)  # fmt: skip
def test_a_profile_that_cannot_be_used_is_refused(text: str, said: str, written: Path) -> None:
    written.write_text(text + "\n")
    with pytest.raises(DeclarationError, match=said) as refusal:
        read_profile(written)
    assert str(written) in str(refusal.value)


def test_a_profile_that_is_not_there_is_refused(written: Path) -> None:
    with pytest.raises(DeclarationError, match=r"no such file\. EVERGREEN_FEATURE_STORE names"):
        read_profile(written)


def test_what_feast_refuses_is_said_without_its_values(written: Path, tmp_path: Path) -> None:
    written.write_text(
        "online_store: {type: redis, connection_string: 7, pass: '$EVERGREEN_FEAST_REDIS'}\n"
    )
    home = featurestore.FeatureHome("example", tmp_path, read_profile(written))
    with pytest.raises(DeclarationError, match="Feast refuses it: connection_string") as refusal:
        home.open()
    assert "hidden" not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert refusal.value.__context__ is None


def test_a_registry_that_does_not_answer_is_named_without_its_address(tmp_path: Path) -> None:
    home = featurestore.FeatureHome("example", tmp_path, read_profile(SHIPPED / "redis.yaml"))
    with pytest.raises(UnavailableError, match=r"feature store at .*redis.yaml") as it:
        home.registered()
    assert "hidden" not in str(it.value)


def test_one_file_is_its_path_and_several_are_alternatives() -> None:
    assert featuresources.hadoop_path(["file:///a/x.parquet"]) == "file:///a/x.parquet"
    assert (
        featuresources.hadoop_path(["/a/x.parquet", "/a/y.parquet"]) == "/a/{x.parquet,y.parquet}"
    )
    assert featuresources.hadoop_path(S3) == "s3a://bucket/tables/{a.parquet,b's.parquet}"
    with pytest.raises(ValueError, match="in one folder, not in /a, /b"):
        featuresources.hadoop_path(["/a/x.parquet", "/b/x.parquet"])


# Feast says it of each SparkSource.
@pytest.mark.filterwarnings("ignore:The spark data source API is an experimental")
def test_spark_is_not_started_to_register(tmp_path: Path) -> None:
    profile = tmp_path / "spark.yaml"
    profile.write_text(f"offline_store: {{type: {featurestore.SPARK}}}\n")
    workspace = replace(workspace_in(tmp_path), feature_store=profile)
    declaration = declare_flights(tmp_path / "example")
    assert features.apply_definitions(declaration, workspace, {})
    view = features.open_store(declaration, workspace).get_feature_view("weather")
    tables = workspace.store.uri("tables/features/example/weather/*.parquet")
    assert view.batch_source.path == tables
    started = sys.modules.get("pyspark")
    assert started is None or started.SparkContext._active_spark_context is None


@pytest.mark.parametrize(
    ("name", "schema"), [("athena", "models"), ("redshift", featuresources.REDSHIFT_SCHEMA)]
)
def test_external_tables_are_narrowed_to_the_files_that_are_meant(name: str, schema: str) -> None:
    profile = read_profile(SHIPPED / f"{name}.yaml")
    source = featuresources.source(profile, "example", "weather", S3, every=False)
    assert source.query == (
        f'SELECT * FROM "{schema}"."example__weather" WHERE "$path" IN '
        "('s3://bucket/tables/a.parquet', 's3://bucket/tables/b''s.parquet')"
    )
    whole = featuresources.source(profile, "example", "weather", S3, every=True)
    assert (whole.table, whole.name) == ("example__weather", "weather_tables")
    assert schema == (whole.database if isinstance(whole, AthenaSource) else whole.schema)
    with pytest.raises(DeclarationError, match=f"{name} reads tables on s3:// only; the store has"):
        featuresources.source(profile, "example", "weather", ["file:///a.parquet"], every=False)


def asking(**columns: list[str]) -> pd.DataFrame:
    rows = pd.DataFrame(columns)
    return rows.assign(
        event_timestamp=pd.Timestamp("2026-01-01", tz="UTC"), row_id=range(len(rows))
    )


def test_what_athena_would_answer_wrongly_is_refused(tmp_path: Path) -> None:
    athena, embedded = read_profile(SHIPPED / "athena.yaml"), read_profile(None)
    own = features.load(declare(tmp_path), {"origin": "string", "distance": "int64"})
    rows = asking(origin=["a"])
    featuresources.check_joinable(embedded, own, rows)
    with pytest.raises(
        DeclarationError, match=r"has the ttl 0:00:00\.000001; on athena allowed are"
    ):
        featuresources.check_joinable(athena, own, rows)

    module = MODULE.replace(
        "weather = ",
        'carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)\n'
        "weather = ",
    ).replace("entities=[origin]", "entities=[origin, carrier]")
    both = declare_flights(
        tmp_path / "both",
        module,
        data={"uri": "landing/{partition}.parquet", "entities": ["origin", "carrier"]},
    )
    definitions = features.load(both, {})
    apart = asking(origin=["a", "a", "b"], carrier=["bc", "bc", "bc"])
    featuresources.check_joinable(athena, definitions, apart)
    alike = asking(origin=["a", "ab"], carrier=["bc", "c"])
    featuresources.check_joinable(embedded, definitions, alike)
    with pytest.raises(
        JoinError, match="view weather: 1 questions have keys that athena can't tell"
    ):
        featuresources.check_joinable(athena, definitions, alike)


def test_a_profile_never_shows_what_it_holds() -> None:
    assert "secret" not in repr(Profile(None, {"registry": {"path": "secret"}}))
