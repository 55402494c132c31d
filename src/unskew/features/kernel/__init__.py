"""The one kernel: columnar events in, rows per closed instant out. numba compiles it, and it does no I/O."""
