"""A Feast offline store that joins point in time on Spark, with the answers of the embedded one.

Feast's own Spark store (0.67) differs from its DuckDB store, each time without a word:

- a time to live is cut to whole seconds, and one below a second is for ever;
- an entity's keys and the time are joined to one text, so that ("a", "bc") finds the rows of
  ("ab", "c");
- times are compared as text in the session's time zone, and come back without one;
- it changes what back quotes mean in every query of the session.

Here each key's rows, known and asked, lie in one ordered window, and the newest known row before a
question is its answer: one shuffle a view, and no pairs. The session is Feast's.

This module imports Feast and Spark at its top because it subclasses; only Feast imports it, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # noqa: TID253 - only Feast imports this module
from feast.infra.offline_stores.contrib.spark_offline_store.spark import (  # noqa: TID253 - only Feast imports this module
    SparkOfflineStore,
    SparkOfflineStoreConfig,
    SparkRetrievalJob,
)
from pyspark import SparkConf
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as f

if TYPE_CHECKING:
    import pandas as pd

_MICROSECOND = timedelta(microseconds=1)


class AsOfSparkOfflineStoreConfig(SparkOfflineStoreConfig):  # type: ignore[misc]  # Feast is untyped
    """Feast finds the store by the name of its configuration."""

    type: str = f"{__name__}.AsOfSparkOfflineStore"


class AsOfSparkOfflineStore(SparkOfflineStore):  # type: ignore[misc]  # Feast is untyped
    """Feast's Spark store with another point-in-time join.

    A feature table holds at most one row for each key and timestamp (who writes it checks that).
    """

    @staticmethod
    def get_historical_features(
        *,
        config: Any,
        feature_views: Sequence[Any],
        feature_refs: Sequence[str],
        entity_df: pd.DataFrame,
        full_feature_names: bool = False,
        **_: Any,
    ) -> SparkRetrievalJob:
        """The entity rows, each once, with the newest features known by their event timestamp."""
        spark = _session(config.offline_store.spark_conf or {})
        asked = pa.Table.from_pandas(entity_df, preserve_index=False)
        # Each view is asked by the bare rows: asked by joined ones, every view would run its
        # predecessors twice.
        bare = rows = spark.createDataFrame(asked)
        for view in feature_views:
            prefix = f"{view.projection.name_to_use()}:"
            names = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
            rows = _join(rows, view, names, bare)
        return _Job(rows, full_feature_names=full_feature_names, config=config)


class _Job(SparkRetrievalJob):  # type: ignore[misc]  # Feast is untyped
    """A frame of Spark's, fetched as Arrow: types and nulls arrive as they are."""

    def __init__(self, frame: DataFrame, *, full_feature_names: bool, config: Any) -> None:
        super().__init__(frame.sparkSession, "", full_feature_names, config)
        self._frame = frame

    def to_spark_df(self) -> DataFrame:
        return self._frame

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        found: pd.DataFrame = self._frame.toArrow().to_pandas()
        return found

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._frame.toArrow()


def _session(settings: dict[str, str]) -> SparkSession:
    """The session of this thread, or one of the profile's settings."""
    configured = SparkConf().setAll(list(settings.items()))
    active = SparkSession.getActiveSession()
    found: SparkSession = active or SparkSession.builder.config(conf=configured).getOrCreate()
    return found


def _join(rows: DataFrame, view: Any, names: list[str], bare: DataFrame) -> DataFrame:
    keys = view.projection.join_key_map or {c.name: c.name for c in view.entity_columns}
    mine = [f"__{key}" for key in keys]
    whole = reduce(lambda a, b: a & b, (f.col(key).isNotNull() for key in mine), f.lit(True))
    source = view.batch_source
    values = f.struct(f.col(source.timestamp_field).alias("__known"), *(f.col(n) for n in names))
    known = rows.sparkSession.read.parquet(*_files(source.path)).select(
        *(f.col(key).alias(name) for key, name in zip(keys, mine, strict=True)),
        f.col(source.timestamp_field).alias("__at"),
        f.lit(0).alias("__asked"),
        values.alias("__row"),
    )
    asked = bare.select(
        *(f.col(column).alias(name) for column, name in zip(keys.values(), mine, strict=True)),
        f.col("event_timestamp").alias("__at"),
    ).distinct()
    nothing = f.lit(None).cast(known.schema["__row"].dataType)
    both = known.unionByName(
        asked.withColumn("__asked", f.lit(1)).withColumn("__row", nothing)
    ).where(whole)
    # At the same moment what is known comes before who asks.
    before = (
        Window.partitionBy(*mine)
        .orderBy("__at", "__asked")
        .rowsBetween(Window.unboundedPreceding, Window.currentRow)
    )
    newest = f.last("__row", ignorenulls=True).over(before)
    found = both.withColumn("__row", newest).where(f.col("__asked") == 1).drop("__asked")
    pairs = [rows[column] == found[name] for column, name in zip(keys.values(), mine, strict=True)]
    joined = rows.join(found, [*pairs, rows["event_timestamp"] == found["__at"]], "left")
    answers = {name: f.col("__row").getField(name) for name in names}
    if view.ttl:
        age = f.unix_micros("event_timestamp") - f.unix_micros(f.col("__row.__known"))
        alive = age <= f.lit(view.ttl // _MICROSECOND)
        answers = {name: f.when(alive, value) for name, value in answers.items()}
    return joined.select(
        *(rows[c] for c in rows.columns), *(v.alias(n) for n, v in answers.items())
    )


def _files(path: str) -> list[str]:
    """What braces stand for: of one path with braces Spark logs that there is no such file."""
    folder, braces, names = path.partition("/{")
    return [f"{folder}/{name}" for name in names.rstrip("}").split(",")] if braces else [path]
