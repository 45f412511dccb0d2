"""Plain requests outside of the measured path: the admin API, metrics, versions."""

from __future__ import annotations

import http.client

from loadtest.http.address import parse_base_url, tls_context
from loadtest.types import LoadTestError, Target


class Asker:
    """One kept connection to a target, with its headers; a new one after each failure."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        """Raises LoadTestError for a base URL or a CA file that is of no use."""
        self._address = parse_base_url(target.base_url)
        self._headers = dict(target.headers)
        host, port = self._address.host, self._address.port
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls_context(target))
            if self._address.tls
            else http.client.HTTPConnection(host, port, timeout=timeout_s)
        )

    def ask(self, method: str, path: str) -> tuple[int, bytes]:
        """Status and body. Raises LoadTestError that names the address where nobody answers."""
        where = f"{self._address.prefix}{path}"
        try:
            self._connection.request(method, where, headers=self._headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            told = str(error) or type(error).__name__
            raise LoadTestError(f"cannot reach {self._address.authority}{where}: {told}") from error

    def close(self) -> None:
        self._connection.close()
