"""How far two distributions over the same bins are apart, and what of that is noise of their samples.

Each share is (n + 0.5) / (N + 0.5 B) over the B bins that at least one of the two has met, so that an empty bin is a
small share and not an infinite distance. Logarithms are natural.
"""

from dataclasses import dataclass

import numpy as np

from unskew.monitoring.bins import Counts

LIMIT = 0.2
"""The PSI above which two distributions are called different; a convention of credit scoring."""
FEWEST = 200
"""With fewer values on either side nothing is judged."""
_NOISIEST = 0.1
_TIMES_NOISE = 3.0


@dataclass(frozen=True, kw_only=True)
class Distance:
    """The distances between a baseline and later values.

    ``psi``: the population stability index, sum of (q - p) ln(q / p). ``kl``: the Kullback-Leibler divergence of the
    later values from the baseline, sum of q ln(q / p). ``js``: the Jensen-Shannon divergence, the mean of both sides'
    divergences from their middle. ``noise``: the PSI that two samples of these sizes of one distribution have on
    average. ``n``, ``n_baseline``: how many values there are.
    """

    psi: float
    kl: float
    js: float
    noise: float
    n: int
    n_baseline: int

    @property
    def are_few(self) -> bool:
        """Whether there are too few values for a judgement: noise alone would often be near the limit."""
        return min(self.n, self.n_baseline) < FEWEST or self.noise > _NOISIEST

    def limit(self, least: float = LIMIT) -> float:
        """Return the PSI above which the distributions are different and not only samples of one."""
        return max(least, _TIMES_NOISE * self.noise)


def distance(baseline: Counts, present: Counts) -> Distance:
    """Return the distances between counts over the same bins; all are 0 if one side has no values."""
    met = (baseline > 0) | (present > 0)
    before, now = baseline[met], present[met]
    n_baseline, n, n_bins = int(before.sum()), int(now.sum()), len(before)
    if not (n and n_baseline):
        return Distance(psi=0.0, kl=0.0, js=0.0, noise=float("inf"), n=n, n_baseline=n_baseline)
    p = (before + 0.5) / (n_baseline + 0.5 * n_bins)
    q = (now + 0.5) / (n + 0.5 * n_bins)
    middle = (p + q) / 2
    return Distance(
        psi=float(((q - p) * np.log(q / p)).sum()),
        kl=float((q * np.log(q / p)).sum()),
        js=float((p * np.log(p / middle) + q * np.log(q / middle)).sum() / 2),
        noise=(n_bins - 1) * (1 / n + 1 / n_baseline),
        n=n,
        n_baseline=n_baseline,
    )
