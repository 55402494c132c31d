"""What the benchmarks feed in: one shape of event, and keys by Zipf's law."""

import numpy as np

SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "user", "type": "long"},
        {"name": "amount", "type": "double"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}


def zipf(n: int, n_entities: int, random: np.random.Generator, exponent: float = 1.1) -> np.ndarray:
    """``n`` entity numbers below ``n_entities``, the small ones often."""
    weights = np.arange(1, n_entities + 1, dtype=np.float64) ** -exponent
    return np.searchsorted(np.cumsum(weights) / weights.sum(), random.random(n))
