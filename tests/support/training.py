"""Training rows whose labels see what became available at exactly their instant, as a recount at that instant does."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from unskew.features.frames import read_table
from unskew.features.view import View
from unskew.offline.join import historical_features


def training_rows(
    log: Path, views: Mapping[str, View], labels: pl.DataFrame, references: Sequence[str]
) -> pl.DataFrame:
    """Return the labels with the values of the references beside them."""
    found = historical_features(log, views, read_table(labels), references, inclusive=True)
    return labels.hstack(found.columns)
