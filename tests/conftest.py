"""What every test shares."""

from hypothesis import settings

# The first example of a test may compile the kernel, so no time limit; no test asserts a time.
settings.register_profile("unskew", deadline=None)
settings.load_profile("unskew")
