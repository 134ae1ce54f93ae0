"""Chaos: real writers, relays, workers and servers under a schedule of faults, and a checker of what is left."""
