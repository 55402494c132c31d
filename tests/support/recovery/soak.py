"""``make soak``: kill the pipeline for as long as one likes, over one history and topology after the other."""

import secrets
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.support.recovery.cases import CASES, WARM_UP, AnyCase
from tests.support.recovery.live_cases import LIVE_CASES
from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis

KILLS_PER_HISTORY = 12
# The embedded broker stamps no record.
ROUNDS: dict[str, AnyCase] = CASES | {
    f"live, {name}": case for name, case in LIVE_CASES.items() if not case.append_time
}


@click.command()
@click.option("--kills", default=200, show_default=True, help="How many kills to survive in all.")
@click.option("--seed", type=int, help="Draws histories and moments; printed where it is not given.")
def soak(kills: int, seed: int | None) -> None:
    """Stop at the first fault, with all files left where they are."""
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    root = Path(tempfile.mkdtemp(prefix="unskew-soak-"))
    print(f"seed {seed}, {kills} kills, in {root}")
    began_s, survived, round_ = time.monotonic(), 0, 0
    with EmbeddedBroker() as broker, EmbeddedRedis() as server:
        WARM_UP.run(broker, server.url, root / "warm-up", seed=seed)
        while survived < kills:
            name = list(ROUNDS)[round_ % len(ROUNDS)]
            folder = root / f"round-{round_}"
            case = ROUNDS[name].killed(min(KILLS_PER_HISTORY, kills - survived))
            report = case.run(broker, server.url, folder, seed=seed + round_)
            survived += len(report.kills)
            print(
                f"{time.monotonic() - began_s:6.0f} s  {survived:4d} kills survived  {name}: {report.looks}", flush=True
            )
            if report.faults:
                sys.exit(f"{report}\nfiles are in {folder}")
            round_ += 1


if __name__ == "__main__":
    soak()
