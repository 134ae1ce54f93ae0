"""Faults of the ways between programs and servers."""

from __future__ import annotations

from tests.chaos.cluster import Cluster
from tests.chaos.faults.ground import Undo, kind
from tests.chaos.schedule import Fault


@kind("link drop")
def link_drop(cluster: Cluster, fault: Fault) -> None:
    """The connections of one program to one server end."""
    cluster.proxies[fault.target].cut()


@kind("link delay")
def link_delay(cluster: Cluster, fault: Fault) -> Undo:
    """Everything takes up to 200 ms longer."""
    cluster.proxies[fault.target].delay = 0.2 * fault.chance
    return cluster.proxies[fault.target].heal


@kind("link hold")
def link_hold(cluster: Cluster, fault: Fault) -> Undo:
    """Half open: nothing comes through, nothing ends."""
    cluster.proxies[fault.target].hold()
    return cluster.proxies[fault.target].heal


@kind("link mute")
def link_mute(cluster: Cluster, fault: Fault) -> Undo:
    """Replies are lost."""
    cluster.proxies[fault.target].mute()
    return cluster.proxies[fault.target].heal


@kind("link deafen")
def link_deafen(cluster: Cluster, fault: Fault) -> Undo:
    """Requests are lost."""
    cluster.proxies[fault.target].deafen()
    return cluster.proxies[fault.target].heal
