"""Feast itself, in an environment of its own, which the tests do not share: it answers each line of JSON with one.

    /path/to/python feast_client.py

Nothing of unskew is imported here. ``apply`` runs `feast apply` in a repository. ``online`` and ``history`` read
features as models and trainers do; the latter writes its answer into a Parquet file. An error is named by its class.
"""

import json
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")

import pandas as pd  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from feast import FeatureService, FeatureStore  # noqa: E402
from feast.cli.cli import cli  # noqa: E402

_PATH = [*sys.path]


def apply(repo: str) -> dict[str, Any]:
    """Run `feast apply`, and return what the registry then holds."""
    # A module of this name may be that of another repository.
    sys.modules.pop("unskew_features", None)
    sys.path[:] = [repo, *_PATH]
    done = CliRunner().invoke(cli, ["-c", repo, "apply"])
    if done.exit_code:
        raise RuntimeError(f"{done.output}\n{done.exception!r}")
    store = FeatureStore(repo_path=repo)
    return {
        "entities": {one.name: one.join_key for one in store.list_entities()},
        "views": {
            one.name: {
                "keys": {field.name: str(field.dtype) for field in one.entity_columns},
                "features": {field.name: str(field.dtype) for field in one.features},
                "description": one.description,
                "owner": one.owner,
                "tags": dict(one.tags),
                "descriptions": {field.name: field.description for field in one.features},
            }
            for one in store.list_feature_views()
        },
        "services": {
            one.name: [f"{part.name}:{field.name}" for part in one.feature_view_projections for field in part.features]
            for one in store.list_feature_services()
        },
    }


def online(repo: str, features: Any, rows: list[dict[str, Any]], *, full: bool = False) -> dict[str, Any]:
    """Read current features; ``features``: references, or the name of a service."""
    store = FeatureStore(repo_path=repo)
    # Its name is all that is sent of a service.
    wanted = FeatureService(name=features, features=[]) if isinstance(features, str) else features
    answer = store.get_online_features(wanted, rows, full_feature_names=full)
    statuses = [[vector.statuses[row] for row in range(len(rows))] for vector in answer.proto.results]
    return {"values": answer.to_dict(), "statuses": statuses}


def history(repo: str, features: Any, labels: str, to: str) -> dict[str, Any]:
    """Read a training set."""
    store = FeatureStore(repo_path=repo)
    wanted = store.get_feature_service(features) if isinstance(features, str) else features
    found = store.get_historical_features(entity_df=pd.read_parquet(labels), features=wanted).to_arrow()
    pq.write_table(found, to)
    return {"rows": found.num_rows}


def main() -> None:
    """Answer until the input ends."""
    # What Feast prints is not an answer.
    out, sys.stdout = sys.stdout, sys.stderr
    does = {"apply": apply, "online": online, "history": history}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"answer": does[asked.pop("do")](**asked)}
        except Exception as error:  # noqa: BLE001 - the test judges it
            answer = {"error": [type(error).__module__, type(error).__name__, str(error)]}
        print(json.dumps(answer, default=str), file=out, flush=True)


if __name__ == "__main__":
    main()
