"""``unskew warm``: compile everything now, so that nothing is compiled where it is needed."""

import time

import click

from unskew.cli.screen import say
from unskew.features.errors import StoreUnavailable


@click.command()
def warm() -> None:
    """Compile the kernel and the point-in-time join, and keep them.

    Without it, the first `unskew run` or `unskew demo`, and the first get_historical_features, compile what they need,
    once for each installation and processor. Run it in the build of an image, on the kind of processor on which the
    image will run, as the user and with the NUMBA_CACHE_DIR of the service. What is compiled already stays.

    \b
    RUN NUMBA_CACHE_DIR=/var/cache/unskew unskew warm
    """
    from unskew.features import jit_cache
    from unskew.offline import lookup
    from unskew.pipelines import compiling

    began, began_cpu = time.perf_counter(), time.process_time()
    if (place := jit_cache.places().writable) is None:
        raise StoreUnavailable(
            "what is compiled cannot be kept; set NUMBA_CACHE_DIR to a folder that only this user can write"
        )
    compiling.compile_all()
    for entry in lookup.entries():
        entry.compile()
    if jit_cache.places().writable is None:
        raise StoreUnavailable(f"what was compiled cannot be kept in {place}; make room there, or set NUMBA_CACHE_DIR")
    say(
        f"compiled in {time.perf_counter() - began:.1f} s ({time.process_time() - began_cpu:.1f} s of processor), "
        f"kept in {place}"
    )
