"""What is found out before anything starts."""

from __future__ import annotations

import socket

import pytest

from serving.errors import PortInUse
from serving.preflight import check_port
from serving.settings import HttpSettings

HOSTS = [("127.0.0.1", socket.AF_INET), ("0.0.0.0", socket.AF_INET), ("localhost", socket.AF_INET)]
if socket.has_ipv6:
    HOSTS += [("::1", socket.AF_INET6), ("::", socket.AF_INET6)]


@pytest.mark.parametrize(("host", "family"), HOSTS)
def test_a_port_is_free_until_somebody_listens(host: str, family: socket.AddressFamily) -> None:
    with socket.socket(family) as holder:
        try:
            holder.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        port = holder.getsockname()[1]
        holder.listen()
        with pytest.raises(PortInUse, match=f"{port} cannot be listened on"):
            check_port(HttpSettings(host=host, port=port))
    check_port(HttpSettings(host=host, port=port))
