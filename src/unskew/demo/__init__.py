"""The demo: a year of real purchases through the whole path, on servers that the demo's process starts and stops."""
