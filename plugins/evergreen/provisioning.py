"""What a deployment's services must hold before Airflow starts: databases, a bucket, a password.

``python -m evergreen.provisioning`` reads the environment and makes what is missing; it is
harmless to repeat. docker-compose.yaml runs it once at each start.

=================================  ================================================
Variable                           what is made
=================================  ================================================
``EVERGREEN_PROVISION_DATABASES``  databases on PostgreSQL, by name, with commas
``EVERGREEN_PROVISION_POSTGRES``   the server, as a URL of its database ``postgres``
``EVERGREEN_STORE_URI``            the bucket, when it is ``s3://…``
``EVERGREEN_ADMIN_PASSWORD``       the password of Airflow's user ``admin``, in the
                                   file that Airflow's simple auth manager reads
=================================  ================================================
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evergreen.errors import EvergreenError, unavailable

PLACEHOLDER = "change-me"
_LOCK = 727_418_002  # an advisory lock's key on PostgreSQL: any number nobody else uses
PASSWORDS = "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"


def provision(environment: Mapping[str, str]) -> list[str]:
    """Make what is missing; says what there is, one line each.

    :raises EvergreenError: when a secret is still the example's placeholder.
    :raises UnavailableError: when a service can't be reached.
    """
    refuse_placeholders(environment)
    return [*_databases(environment), *_bucket(environment), *_password(environment)]


def refuse_placeholders(environment: Mapping[str, str]) -> None:
    """A secret that everybody can read in .env.example is none.

    :raises EvergreenError: naming the variables.
    """
    found = sorted(name for name, value in environment.items() if PLACEHOLDER in value)
    if found:
        raise EvergreenError(
            f"{', '.join(found)}: still holds {PLACEHOLDER!r} from .env.example. Put a secret of "
            "your own into .env, such as `openssl rand -hex 24` prints; the file says which kind."
        )


def _databases(environment: Mapping[str, str]) -> Iterator[str]:
    server = environment.get("EVERGREEN_PROVISION_POSTGRES")
    names = environment.get("EVERGREEN_PROVISION_DATABASES", "").split(",")
    if not server:
        return
    import sqlalchemy as sa

    known = sa.text("SELECT 1 FROM pg_database WHERE datname = :name")
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    address = engine.url.render_as_string(hide_password=True)
    with (
        unavailable("PostgreSQL", address, sa.exc.OperationalError),
        engine.connect() as connection,
    ):
        connection.execute(sa.select(sa.func.pg_advisory_lock(_LOCK)))  # until it disconnects
        for name in filter(None, map(str.strip, names)):
            if not connection.scalar(known, {"name": name}):
                quoted = engine.dialect.identifier_preparer.quote_identifier(name)
                connection.execute(
                    sa.DDL("CREATE DATABASE %(name)s", context={"name": quoted})  # type: ignore[no-untyped-call]  # SQLAlchemy has not typed it
                )
            yield f"database {name}"


def _bucket(environment: Mapping[str, str]) -> Iterator[str]:
    bucket = urlsplit(environment.get("EVERGREEN_STORE_URI", ""))
    if bucket.scheme != "s3":
        return
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import get_session

    with unavailable("the bucket", bucket.netloc, BotoCoreError, ClientError):
        client = get_session().create_client("s3")
        try:
            client.head_bucket(Bucket=bucket.netloc)
        except ClientError as error:
            code = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if code == 403:
                raise EvergreenError(
                    f"EVERGREEN_STORE_URI: the bucket {bucket.netloc} is another account's, or the "
                    "credentials may not use it (403). Name a bucket of your own, or allow them "
                    "s3:ListBucket on it and s3:GetObject and s3:PutObject on what is in it."
                ) from error
            if code != 404:
                raise
            _make_bucket(client, bucket.netloc)
    yield f"bucket {bucket.netloc}"


def _make_bucket(client: Any, name: str) -> None:
    region, options = client.meta.region_name, {}
    if region != "us-east-1":  # which S3 refuses to be told by name
        options["CreateBucketConfiguration"] = {"LocationConstraint": region}
    client.create_bucket(Bucket=name, **options)


def _password(environment: Mapping[str, str]) -> Iterator[str]:
    password, path = environment.get("EVERGREEN_ADMIN_PASSWORD"), environment.get(PASSWORDS)
    if not password or not path:
        return
    aside = Path(f"{path}.aside")
    aside.parent.mkdir(parents=True, exist_ok=True)
    aside.touch(mode=0o600)
    aside.write_text(json.dumps({"admin": password}))
    aside.replace(path)
    yield "the password of admin"


def main() -> int:
    """Make what is missing, for the environment of this process."""
    try:
        for line in provision(os.environ):
            print(f"there is: {line}")  # noqa: T201 - a command's output
    except EvergreenError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command's output
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
