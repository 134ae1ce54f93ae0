"""A Redis Cluster: the whole path over three nodes, while nodes die and slots move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from console.servers import Redis
from outbox.admin import status
from outbox.admin.streams import streams
from outbox.names import stream_key
from outbox.redis import connect

ROUND = 30
"""Events of each name in one go."""


def slot(name: str) -> int:
    return key_slot(stream_key("outbox", name).encode())


@pytest.mark.oldest
@pytest.mark.slow
def test_with_the_documented_rights_streams_on_all_nodes_are_served_and_shown_and_may_move_meanwhile(
    cluster: Any,
    documented_rights: list[list[str]],
    assert_nothing_refused: Callable[[redis.Redis], None],
    whole_path: Callable[[str], Any],
) -> None:
    for client in cluster.clients:
        for command in documented_rights:
            client.execute_command(*command)
    url = cluster.url.replace("://", "://outbox:password@")
    with whole_path(url) as path:
        path.add(ROUND)
        path.await_attached()
        assert {cluster.owner(slot(name)) for name in path.names} == {0, 1, 2}
        for name in path.names[:3]:
            path.add(ROUND)
            cluster.move(slot(name), to=(cluster.owner(slot(name)) + 1) % 3)
        path.await_done()
        with connect(path.settings.redis_url.get_secret_value(), timeout=5) as client:
            shown = streams(client, path.settings.prefix, status(path.settings).handlers)
        assert {stream.key for stream in shown if stream.pending == 0} >= {stream_key("outbox", n) for n in path.names}
    with whole_path(url) as again:
        again.added = path.added
        again.add(ROUND)
        again.await_done()
    for client in cluster.clients:
        assert_nothing_refused(client)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_when_one_node_fails_over_and_another_is_killed_and_comes_back(
    cluster: Any, whole_path: Callable[[str], Any], wait_for: Callable[..., Any]
) -> None:
    with whole_path(cluster.url) as path:
        path.await_attached()
        path.add(ROUND)
        cluster.nodes[0].kill()
        path.add(ROUND)
        wait_for(lambda: cluster.clients[3].info()["role"] == "master", "the replica taking over")
        path.await_done()
        cluster.nodes[0].start()
        cluster.await_healthy()
        path.add(ROUND)
        cluster.nodes[1].kill()
        path.add(ROUND)
        cluster.nodes[1].start()
        path.await_done()


def test_relay_and_worker_wait_for_a_cluster_that_is_not_there_yet(
    start_redis: Callable[..., Redis],
    node_port: int,
    whole_path: Callable[[str], Any],
    wait_for: Callable[..., Any],
) -> None:
    with whole_path(f"redis+cluster://127.0.0.1:{node_port}") as path:
        path.add(ROUND)
        wait_for(lambda: path.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), "a leader")
        server = start_redis(port=node_port, options={"cluster-enabled": "yes"})
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLUSTER ADDSLOTS", *range(16384))
        path.await_done()


def test_tls_for_every_node_of_a_cluster(
    start_redis: Callable[..., Redis],
    two_node_ports: list[int],
    cluster_state: Callable[[redis.Redis], Any],
    encrypt: Callable[[int], Any],
    trust: str,
    whole_path: Callable[[str], Any],
    wait_for: Callable[..., Any],
) -> None:
    ports = two_node_ports
    gates = [encrypt(port) for port in ports]
    for port, gate in zip(ports, gates, strict=True):
        # Where clients are sent.
        options = {
            "cluster-enabled": "yes",
            "cluster-announce-ip": "127.0.0.1",
            "cluster-announce-port": str(gate.port),
            "cluster-announce-bus-port": str(port + 10_000),
        }
        start_redis(port=port, options=options)
    clients = [redis.Redis.from_url(f"redis://127.0.0.1:{port}/0") for port in ports]
    for half, client in enumerate(clients):
        client.execute_command("CLUSTER SET-CONFIG-EPOCH", half + 1)
        client.execute_command("CLUSTER ADDSLOTS", *range(8192 * half, 8192 * (half + 1)))
    clients[0].execute_command("CLUSTER MEET", "127.0.0.1", ports[1], ports[1] + 10_000)
    wait_for(
        lambda: all(cluster_state(client) == b"ok" for client in clients),
        "the cluster being healthy",
    )
    with whole_path(f"rediss+cluster://127.0.0.1:{gates[1].port}?{trust}") as path:
        path.add(20)
        path.await_done()
        path.await_attached()
        with connect(path.settings.redis_url.get_secret_value(), timeout=5) as client:
            shown = streams(client, path.settings.prefix, status(path.settings).handlers)
        assert {stream.key for stream in shown} >= {stream_key("outbox", name) for name in path.names}
    assert all(gate.encrypted for gate in gates)
    for client in clients:
        assert client.keys("outbox:{*"), "no stream on this node"
        client.close()
