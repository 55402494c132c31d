"""Feast's ``get_online_features`` with its Redis store; needs ``feast[redis]``, and is run by bench_serving.py.

    python peers_feast_online.py REDIS_URL VALUES

``VALUES``: a Parquet file with a row for each user. Writes them to the online store, and prints the folder of the
repository. Then each line of the input asks for some reads, and each line of the output has their seconds and the last
answer, as JSON.
"""

import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float64, Int64
from feast.value_type import ValueType


def main() -> None:
    url, values = sys.argv[1:]
    frame = pd.read_parquet(values)
    names = [name for name in frame.columns if name != "user"]
    views = list(dict.fromkeys(name.partition("_")[0] for name in names))
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(
            config=RepoConfig(
                project="serving",
                provider="local",
                registry=str(Path(folder) / "registry.db"),
                online_store={"type": "redis", "connection_string": f"127.0.0.1:{urlsplit(url).port}"},
                offline_store={"type": "dask"},
                entity_key_serialization_version=3,
            )
        )
        user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
        columns = {view: [name for name in names if name.startswith(f"{view}_")] for view in views}
        defined = [
            FeatureView(
                name=view,
                entities=[user],
                ttl=timedelta(0),
                schema=[
                    Field(name=name, dtype=Float64 if frame[name].dtype.kind == "f" else Int64)
                    for name in columns[view]
                ],
                source=FileSource(path=values, timestamp_field="at"),
            )
            for view in views
        ]
        store.apply([user, *defined])
        for view in views:
            rows = frame[["user", *columns[view]]].assign(at=datetime.now(UTC))
            store.write_to_online_store(view, rows)
        (Path(folder) / "feature_store.yaml").write_text(
            f"project: serving\nprovider: local\nregistry: {folder}/registry.db\nentity_key_serialization_version: 3\n"
            f"online_store: {{type: redis, connection_string: '127.0.0.1:{urlsplit(url).port}'}}\noffline_store: {{type: dask}}\n"
        )
        print(json.dumps(folder), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            references = [f"{view}:{name}" for view in asked["views"] for name in columns[view]]
            entities = [{"user": number} for number in asked["users"]]
            seconds = []
            found = {}
            for _ in range(asked["reads"]):
                began = time.perf_counter()
                found = store.get_online_features(features=references, entity_rows=entities).to_dict()
                seconds.append(time.perf_counter() - began)
            print(json.dumps({"seconds": seconds, "answer": found}), flush=True)


if __name__ == "__main__":
    main()
