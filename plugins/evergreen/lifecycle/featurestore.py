"""The one place that opens Feast: embedded, or as a ``feature_store.yaml`` of Feast's own says.

Embedded, a model has a registry file and a SQLite online store below the home folder, and joins by
DuckDB. A profile (`evergreen.workspace.Workspace.feature_store`) replaces any of the three for all
models; each model is a project of its name. Feast itself fills in a profile's ``$NAME`` and
``${NAME}`` from the environment, so no secret stands in it; its ``project`` is for Feast's own
command line and not read here.

A registry file is built aside and renamed: it is whole or as before. A SQL registry is changed in
place: first the digest that marks it as complete goes, last it comes, and in between every step can
be repeated by whoever finds no digest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evergreen.errors import DeclarationError, unavailable
from evergreen.store import Store
from evergreen.workspace import Workspace

DUCKDB = "evergreen.lifecycle.pointintime.AsOfOfflineStore"
SPARK = "evergreen.lifecycle.sparkjoin.AsOfSparkOfflineStore"
#: Offline stores whose answers are known to be those of the embedded one, or said not to be.
OFFLINE = (DUCKDB, SPARK, "duckdb", "athena", "redshift")
ONLINE = ("sqlite", "redis", "dynamodb")
REGISTRIES = ("file", "sql")
REGISTRY_FILE = "registry.db"
_SECTIONS = ("registry", "offline_store", "online_store")
_OTHERS = ("project", "provider", "entity_key_serialization_version")
_DIGEST = "evergreen.definitions"
_NAME = re.compile(r"\$(?:\{([^}]*)\}|(\w+))")


@dataclass(frozen=True)
class Profile:
    """Which of Feast's stores are used.

    :ivar file: where it is written; None for the embedded default.
    :ivar sections: what Feast's ``RepoConfig`` is made of, but for project and local paths.
    """

    file: Path | None
    sections: Mapping[str, Any] = field(repr=False)

    @property
    def registry(self) -> str:
        """One of `REGISTRIES`."""
        return str(self.sections["registry"]["registry_type"])

    @property
    def offline(self) -> str:
        """One of `OFFLINE`."""
        return str(self.sections["offline_store"]["type"])

    @property
    def online(self) -> str:
        """One of `ONLINE`."""
        return str(self.sections["online_store"]["type"])

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Name the profile when a store of it can't be reached; addresses may hold secrets."""
        with unavailable("the feature store", f"{self.file or 'its files'}", *_unreachable(self)):
            yield


def read_profile(file: Path | None) -> Profile:
    """A profile; the sections that it leaves out are as embedded.

    :raises DeclarationError: when the file can't be used.
    """
    sections: dict[str, Any] = {
        "registry": {"registry_type": "file"},
        "offline_store": {"type": DUCKDB},
        "online_store": {"type": "sqlite"},
        "provider": "local",
        "entity_key_serialization_version": 3,
    }
    if file is None:
        return Profile(None, sections)
    sections |= {name: value for name, value in _read(file).items() if name != "project"}
    for name, key, allowed in (
        ("registry", "registry_type", REGISTRIES),
        ("offline_store", "type", OFFLINE),
        ("online_store", "type", ONLINE),
    ):
        _check(file, name, key, sections[name], allowed)
    return Profile(file, sections)


@dataclass(frozen=True)
class FeatureHome:
    """Where a model's features are registered and online.

    :ivar model: also the project's name.
    :ivar folder: for what isn't anywhere else by the profile.
    """

    model: str
    folder: Path
    profile: Profile

    @property
    def files(self) -> tuple[Path, ...]:
        """The local files that make it up: the registry's, the online store's, or neither."""
        registry = (self._registry,) if self.profile.registry == "file" else ()
        return (*registry, self._online) if self.profile.online == "sqlite" else registry

    def open(self, *, writing: bool = False) -> Any:
        """A Feast store.

        :param writing: also makes a SQL registry's tables; and reads DynamoDB consistently, since
            what is online decides what is written.
        """
        return self._open(self._registry, writing=writing)

    def registered(self) -> str | None:
        """The digest of what is registered; None when nothing is, or not all of it."""
        if self.profile.online == "sqlite" and not self._online.exists():
            return None
        content = self._registry_file() if self.profile.registry == "file" else self._registry_row()
        return str(content.spec.tags[_DIGEST]) if content and _DIGEST in content.spec.tags else None

    def prepared(self) -> bool:
        """Whether the registry can be written to by several at once: a SQL registry has its tables."""
        from feast.infra.registry.sql import projects
        from sqlalchemy import inspect

        if self.profile.registry == "file":
            return True
        with self.profile.reachable(), self._engine.connect() as connection:
            return bool(inspect(connection).has_table(projects.name))

    def prepare(self) -> None:
        """Make a SQL registry's tables, as opening it does. One at a time: it can't be raced."""
        from feast.infra.registry.sql import metadata

        with self.profile.reachable():
            metadata.create_all(self._engine)

    def register(self, objects: Sequence[Any], description: str, digest: str) -> None:
        """Make ``objects`` all that is registered. Harmless to repeat, and to kill."""
        from feast.project import Project

        marked = Project(name=self.model, description=description, tags={_DIGEST: digest})
        with self.profile.reachable():
            if self.profile.registry == "file":
                Store(str(self.folder)).write(
                    self._registry.name,
                    lambda aside: self._open(aside, writing=True).apply([marked, *objects]),
                )
                return
            feast = self.open(writing=True)
            feast.registry.apply_project(Project(name=self.model, description=description))
            gone = _gone(feast.registry, self.model, objects)
            feast.apply(list(objects), objects_to_delete=gone, partial=False)
            feast.registry.apply_project(marked)

    def signature(self) -> dict[str, Any]:
        """What a registration depends on beside its objects: where Feast made online tables."""
        if self.profile.online != "dynamodb":
            return {} if self.profile.online == "sqlite" else {"online": self.profile.online}
        online = self.profile.sections["online_store"]
        names = ("type", "region", "endpoint_url", "table_name_template")
        return {"online": {name: online[name] for name in names if name in online}}

    @property
    def _registry(self) -> Path:
        return self.folder / REGISTRY_FILE

    @property
    def _online(self) -> Path:
        return self.folder / "online.db"

    def _open(self, registry: Path, *, writing: bool) -> Any:
        from feast import FeatureStore

        return FeatureStore(config=self._config(registry, writing=writing))

    def _config(self, registry: Path, *, writing: bool) -> Any:
        sections = deepcopy(dict(self.profile.sections))
        if self.profile.registry == "file":
            sections["registry"]["path"] = str(registry)
        else:
            # Never expires: whoever opened it asks for the digest, and opens it anew.
            known = {"cache_ttl_seconds": 0, "sqlalchemy_config_kwargs": {"pool_pre_ping": True}}
            mode = {} if writing else {"schema_mode": "skip"}
            sections["registry"] = {**known, **mode, **sections["registry"]}
        if self.profile.online == "sqlite":
            sections["online_store"]["path"] = str(self._online)
        if self.profile.online == "redis":
            # Feast's own comparison leaves a corrected row of the same moment out; ours is made
            # under a lock before anything is written.
            sections["online_store"]["skip_dedup"] = True
        if self.profile.online == "dynamodb" and writing:
            sections["online_store"]["consistent_reads"] = True
        return repo_config(self.profile, self.model, sections)

    def _registry_file(self) -> Any:
        from feast.protos.feast.core.Registry_pb2 import Registry
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

        try:
            content = Registry.FromString(self._registry.read_bytes())
        except (FileNotFoundError, DecodeError):
            return None
        return next((p for p in content.projects if _DIGEST in p.spec.tags), None)

    def _registry_row(self) -> Any:
        """The project of a SQL registry: one row, where opening the registry reads all of it."""
        from feast.infra.registry.sql import projects
        from feast.protos.feast.core.Project_pb2 import Project
        from sqlalchemy import select

        if not self.prepared():
            return None
        with self.profile.reachable(), self._engine.connect() as connection:
            wanted = projects.c.project_id == self.model
            row = connection.execute(select(projects.c.project_proto).where(wanted)).scalar()
        return Project.FromString(row) if row else None

    @cached_property
    def _engine(self) -> Any:
        from sqlalchemy import create_engine

        return create_engine(
            self._config(self._registry, writing=False).registry.path, pool_pre_ping=True
        )


def feature_home(model: str, workspace: Workspace) -> FeatureHome:
    """Where a model's features are in a workspace.

    :raises DeclarationError: when the workspace's profile can't be used.
    """
    folder = workspace.home / "feast" / model
    folder.mkdir(parents=True, exist_ok=True)
    return FeatureHome(model, folder, read_profile(workspace.feature_store))


def joining_home(model: str, folder: Path, profile: Profile) -> FeatureHome:
    """A private place to join in: tasks that share a registry race. Only the offline store is the
    profile's."""
    private = {**read_profile(None).sections, "offline_store": profile.sections["offline_store"]}
    return FeatureHome(model, folder, Profile(profile.file, private))


def repo_config(profile: Profile, model: str, sections: Mapping[str, Any]) -> Any:
    """Feast's ``RepoConfig``.

    :raises DeclarationError: when Feast refuses it; without the values, which may be secret.
    """
    from feast import RepoConfig
    from pydantic import ValidationError

    try:
        return RepoConfig(project=model, **sections)
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()
        )
    raise DeclarationError(f"{profile.file}: Feast refuses it: {found}")


def _read(file: Path) -> dict[str, Any]:
    """A profile as Feast reads one: variables filled in, then parsed."""
    import yaml

    try:
        text = file.read_text()
        plain = yaml.safe_load(text)
        content = yaml.safe_load(os.path.expandvars(text))
    except FileNotFoundError:
        raise DeclarationError(
            f"{file}: no such file. EVERGREEN_FEATURE_STORE names a feature_store.yaml; unset it for "
            "the embedded default."
        ) from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        raise DeclarationError(
            f"{file}: no YAML once variables are filled in, at {place and place.line + 1}: "
            "quote values that come from variables"
        ) from None  # the error shows the line, with what was filled in
    if not isinstance(content, dict):
        raise DeclarationError(f"{file}: {type(content).__name__}; allowed is a mapping")
    asked = {a or b for text in _texts(plain) for a, b in _NAME.findall(text)}
    if unset := sorted(asked - set(os.environ)):
        raise DeclarationError(
            f"{file}: takes {', '.join(unset)} from the environment, where it isn't set. Set it; "
            "Feast knows $NAME and ${NAME}, and no defaults."
        )
    if unknown := sorted(set(content) - {*_SECTIONS, *_OTHERS}):
        raise DeclarationError(
            f"{file}: has {', '.join(unknown)}; allowed are {', '.join((*_SECTIONS, *_OTHERS))}"
        )
    return content


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)


def _check(file: Path, name: str, key: str, section: Any, allowed: tuple[str, ...]) -> None:
    found = section.get(key) if isinstance(section, dict) else section
    if found not in allowed:
        raise DeclarationError(
            f"{file}: {name}.{key} is {found!r}; allowed are {', '.join(allowed)}. See "
            "docs/features-at-scale.md for why no other."
        )
    if found in ("file", "sqlite") and "path" in section:
        raise DeclarationError(
            f"{file}: {name}.path is set; leave it out: each model has a file of its own below "
            "EVERGREEN_HOME/feast"
        )


def _gone(registry: Any, model: str, objects: Sequence[Any]) -> list[Any]:
    """What is registered and not wanted any more."""
    from feast import Entity, FeatureService, FeatureView
    from feast.feature_view import DUMMY_ENTITY_NAME

    views = [o for o in objects if isinstance(o, FeatureView)]
    wanted = {
        "services": {o.name for o in objects if isinstance(o, FeatureService)},
        "views": {o.name for o in views},
        "entities": {o.name for o in objects if isinstance(o, Entity)} | {DUMMY_ENTITY_NAME},
        "sources": {o.batch_source.name for o in views},
    }
    found = {
        "services": registry.list_feature_services(model),
        "views": registry.list_feature_views(model),
        "entities": registry.list_entities(model),
        "sources": registry.list_data_sources(model),
    }
    return [o for kind, each in found.items() for o in each if o.name not in wanted[kind]]


def _unreachable(profile: Profile) -> tuple[type[Exception], ...]:
    """What "not reachable" looks like for the stores of a profile."""
    from sqlalchemy.exc import InterfaceError, OperationalError

    causes: tuple[type[Exception], ...] = (ConnectionError, TimeoutError)
    if profile.registry == "sql":
        causes = (*causes, OperationalError, InterfaceError)
    if profile.online == "redis":
        from redis.exceptions import ConnectionError as NotConnected
        from redis.exceptions import TimeoutError as TooLate

        causes = (*causes, NotConnected, TooLate)
    if profile.online == "dynamodb":
        from botocore.exceptions import BotoCoreError, ClientError

        causes = (*causes, BotoCoreError, ClientError)
    return causes
