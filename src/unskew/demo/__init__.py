"""The demo: a year of real purchases through the whole path, on servers that live inside this machine's process."""
