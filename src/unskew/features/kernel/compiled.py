"""How kernel functions are compiled: one place, so that all of them are alike."""

from functools import partial

from numba import njit

# cache: compiled once per machine, not per process. nogil: shards of one process may run side by side.
# numpy error model: no test for division by zero on every division; divisors are checked by ``compile``.
# _nrt=False: no reference counting inside. The kernel allocates nothing, its arrays are owned outside, and counting
# costs an atomic pair per array access: it made an event six times as dear (1,200 against 200 ns, one window).
# The option is numba's own but not documented; without it everything works the same, slower.
compiled = partial(njit, cache=True, nogil=True, error_model="numpy", _nrt=False)

# Into the caller, before typing: a call would pass each of the state's arrays as seven words.
inlined = partial(compiled, inline="always")
