"""A run of one process opens ports that other machines cannot reach."""

from __future__ import annotations

import ipaddress
import os

import psutil
import pytest

from megatron.ltd.parallel.mesh import listen_on_loopback
from tests.support import world


def test_one_process_listens_on_loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with world():
        sockets = psutil.Process().net_connections(kind="inet")
        addresses = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        assert addresses and all(ipaddress.ip_address(address).is_loopback for address in addresses)
        assert os.environ["GLOO_SOCKET_IFNAME"].startswith("lo")


@pytest.mark.parametrize(("world_size", "local", "name"), [
    (1, None, "lo"), (4, "4", "lo"), (4, "2", None), (4, None, None), (1, "1", "lo"),
])  # fmt: skip
def test_processes_of_one_node_use_loopback(
    world_size: int, local: str | None, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchrun says how many of them are here. A variable that is set already wins."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    listen_on_loopback(world_size)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    listen_on_loopback(world_size)
    found = os.environ.pop("GLOO_SOCKET_IFNAME", None)
    assert found is None if name is None else str(found).startswith(name)
