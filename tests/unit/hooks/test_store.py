"""The store's Connection: a root without credentials, opened by an AWS Connection or not."""

import json
from pathlib import Path
from typing import Any

import pytest

from evergreen.errors import DeclarationError
from evergreen.hooks.store import StoreHook
from evergreen.standalone import free_port

SECRET = "planted/secret+key"


def hook(monkeypatch: pytest.MonkeyPatch, host: str, **extra: Any) -> StoreHook:
    given = {"conn_type": "evergreen_store", "host": host, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_EVERGREEN_STORE", json.dumps(given))
    return StoreHook()


def aws(monkeypatch: pytest.MonkeyPatch, **extra: Any) -> None:
    given = {"conn_type": "aws", "login": "an id", "password": SECRET, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_STORES_AWS", json.dumps(given))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_probe_leaves_nothing(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, said = hook(monkeypatch, f"{scheme}{tmp_path}/store").test_connection()
    assert passed, said
    assert said.startswith(f"Wrote, read and deleted {scheme}{tmp_path}/store/probe-")
    assert list((tmp_path / "store").iterdir()) == []


def test_a_root_that_is_no_folder_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").write_text("a file")
    passed, said = hook(monkeypatch, f"file://{tmp_path}/store").test_connection()
    assert not passed
    assert f"{tmp_path}/store" in said
    assert "retried" not in said


@pytest.mark.parametrize(
    ("host", "extra", "message"),
    [
        ("", {}, "host is '', which is no root"),
        ("bucket/evergreen", {}, "like s3://bucket"),
        ("s3://me:planted@bucket/e", {}, "host holds credentials"),
        ("file:///srv/store", {"aws_conn_id": "stores_aws"}, "isn't on S3"),
        ("s3://bucket/e", {"aws_conn_id": "misspelt"}, "there is no such Connection"),
    ],
)
def test_what_it_can_not_use_is_said(
    host: str, extra: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeclarationError, match=message) as caught:
        hook(monkeypatch, host, **extra).get_conn()
    assert "planted" not in str(caught.value)


def test_a_container_before_the_account_is_no_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    root = "abfs://container@account.dfs.core.windows.net/e"
    assert hook(monkeypatch, root).root() == root


def test_without_an_aws_connection_the_environment_opens_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert hook(monkeypatch, "s3://bucket/e").options() == {}


def test_an_aws_connection_opens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    aws(
        monkeypatch,
        region_name="eu-central-1",
        endpoint_url="http://elsewhere:1",
        service_config={"s3": {"endpoint_url": "http://store:9000"}},
        verify=False,
        config_kwargs={"s3": {"addressing_style": "path"}},
    )
    store = hook(monkeypatch, "s3://bucket/e", aws_conn_id="stores_aws").get_conn()
    assert SECRET not in repr(store)
    assert store._options == {
        "key": "an id",
        "secret": SECRET,
        "token": None,
        "client_kwargs": {
            "endpoint_url": "http://store:9000",
            "region_name": "eu-central-1",
            "verify": False,
        },
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }


def test_a_public_bucket_needs_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    aws(monkeypatch, config_kwargs={"signature_version": "unsigned"})
    options = hook(monkeypatch, "s3://bucket/e", aws_conn_id="stores_aws").options()
    assert options == {"anon": True, "client_kwargs": {}, "config_kwargs": {}}


def test_an_endpoint_where_nobody_listens_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    aws(monkeypatch, region_name="eu-central-1", endpoint_url=f"http://127.0.0.1:{free_port()}")
    passed, said = hook(monkeypatch, "s3://bucket/e", aws_conn_id="stores_aws").test_connection()
    assert not passed
    assert "127.0.0.1" in said
    assert SECRET not in said
