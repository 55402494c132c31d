"""The one kernel: columnar events in, rows per closed instant out. Compiled by numba, knows no I/O."""
