"""`outbox doctor` of a cluster: every primary is looked at."""

from __future__ import annotations

from typing import Any

from console.doctor import Severity, examine
from outbox.settings import Settings


def test_every_primary_of_a_cluster_is_looked_at(database_url: str, cluster: Any) -> None:
    settings = Settings(database_url=database_url, redis_url=cluster.url, _env_file=None)  # type: ignore[call-arg,arg-type]
    found = {finding.check: finding for finding in examine(settings)}
    assert all(finding.made for finding in found.values())
    assert found["redis"].severity is Severity.OK
    assert found["redis"].evidence.count("127.0.0.1:") > 1
