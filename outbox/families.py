"""Metrics for Prometheus from plain numbers: a name, what it says, and a value for each combination of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from outbox.tally import Histogram

Labels: TypeAlias = tuple[str, ...]

Values: TypeAlias = float | Mapping[Any, float]
"""A number, or one for each combination of labels."""


def gauge(name: str, says: str, values: Values, labels: Labels = ()) -> Metric:
    """What goes up and down; without labels a single number.

    >>> gauge("outbox_stream_length", "Entries in a stream.", {("outbox:{paid}",): 7}, ("stream",))
    """
    family = GaugeMetricFamily(name, says, labels=labels)
    for combination, value in _combinations(values):
        family.add_metric(combination, value)
    return family


def counter(name: str, says: str, values: Values, labels: Labels = ()) -> Metric:
    """What only rises; Prometheus sees it as `<name>_total`."""
    family = CounterMetricFamily(name, says, labels=labels)
    for combination, value in _combinations(values):
        family.add_metric(combination, value)
    return family


def histogram(name: str, says: str, values: Mapping[Labels, Histogram], labels: Labels = ()) -> Metric:
    """How observations are spread."""
    family = HistogramMetricFamily(name, says, labels=labels)
    for combination, value in values.items():
        family.add_metric(combination, value.buckets(), value.total)
    return family


def _combinations(values: Values) -> list[tuple[Labels, float]]:
    if isinstance(values, Mapping):
        # A copy: whoever counts goes on.
        return list(values.items())
    return [((), values)]
