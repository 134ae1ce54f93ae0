"""Measures the write path, the relay, the workers and the latency from end to end: `python -m benchmarks all`.

Every claim is a ratio of medians within one run, its sides measured in turns; `docs/benchmarks.md` says what is
compared.
"""
