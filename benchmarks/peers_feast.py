"""Feast's ``get_historical_features`` over rows of the log; needs ``feast[duckdb]``, and is run by bench_journey.py.

    python peers_feast.py STORE ROWS LABELS ANSWER RUNS

``STORE``: ``dask`` or ``duckdb``. ``ROWS`` and ``LABELS``: Parquet files. Writes the answer in the order of the
labels, and prints the seconds of each call.
"""

import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float64, Int64
from feast.value_type import ValueType


def main() -> None:
    store_type, rows, labels, answer, runs = sys.argv[1:]
    schema = pq.read_schema(rows)
    features = [field for field in schema if field.name not in {"household_id", "available_at"}]
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(
            config=RepoConfig(
                project="journey",
                provider="local",
                registry=str(Path(folder) / "registry.db"),
                online_store={"type": "sqlite", "path": str(Path(folder) / "online.db")},
                offline_store={"type": store_type},
                entity_key_serialization_version=3,
            )
        )
        household = Entity(name="household", join_keys=["household_id"], value_type=ValueType.INT64)
        view = FeatureView(
            name="spending",
            entities=[household],
            ttl=timedelta(0),
            schema=[
                Field(name=field.name, dtype=Float64 if pa.types.is_floating(field.type) else Int64)
                for field in features
            ],
            source=FileSource(path=rows, timestamp_field="available_at"),
        )
        store.apply([household, view])
        wanted = pd.read_parquet(labels)
        references = [f"spending:{field.name}" for field in features]
        for _ in range(int(runs)):
            began = time.perf_counter()
            found = store.get_historical_features(entity_df=wanted, features=references).to_df()
            print(f"{time.perf_counter() - began:.3f}")
        found = found.sort_values("label")
        found.to_parquet(answer)


if __name__ == "__main__":
    main()
