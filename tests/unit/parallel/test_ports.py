"""A run of one process opens ports that other machines cannot reach."""

from __future__ import annotations

import ipaddress
import os

import psutil
import pytest

from tests.support import world


def test_one_process_listens_on_loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with world():
        sockets = psutil.Process().net_connections(kind="inet")
        addresses = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        assert addresses and all(ipaddress.ip_address(address).is_loopback for address in addresses)
        assert os.environ["GLOO_SOCKET_IFNAME"].startswith("lo")
