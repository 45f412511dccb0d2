"""Questions to an endpoint outside of the measured time."""

from __future__ import annotations

import http.client
import json
from typing import Any

from loadtest.http.address import parse_base_url, tls_context
from loadtest.types import LoadTestError, Target

ANSWER_WITHIN_S = 10.0
MODELS = "/v1/models"


class Asker:
    """One connection for questions, kept open between them; a new one after each failure. Close it."""

    def __init__(self, target: Target, timeout_s: float = ANSWER_WITHIN_S) -> None:
        """Raises LoadTestError for a base URL or a CA file that is of no use."""
        address = parse_base_url(target.base_url)
        self._prefix = address.prefix
        self._headers = {**dict(target.headers), "Content-Type": "application/json"}
        self.where = f"{address.authority}{address.prefix}"
        self._connection = (
            http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=tls_context(target))
            if address.tls
            else http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
        )

    def fetch(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """Status and body of the answer. Raises LoadTestError if nobody answers."""
        try:
            self._connection.request(method, f"{self._prefix}{path}", body=body, headers=self._headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise LoadTestError(f"cannot reach {self.where}{path}: {error or type(error).__name__}") from error

    def ask(self, method: str, path: str, question: Any = None) -> Any:
        """The answer, parsed. Raises LoadTestError unless it is JSON with status 200."""
        status, found = self.fetch(method, path, None if question is None else json.dumps(question))
        if status != 200:
            raise LoadTestError(f"{self.where}{path} answered {status}: {found[:200].decode(errors='replace')}")
        try:
            return json.loads(found)
        except ValueError as error:
            raise LoadTestError(f"{self.where}{path} did not answer in JSON") from error

    def close(self) -> None:
        self._connection.close()


def first_model(target: Target) -> str:
    """The first model that `/v1/models` names. Raises LoadTestError."""
    asker = Asker(target)
    try:
        model: str = asker.ask("GET", MODELS)["data"][0]["id"]
    except (LookupError, TypeError) as error:
        raise LoadTestError(f"{asker.where}{MODELS} names no model; give --model") from error
    finally:
        asker.close()
    return model


def get(target: Target, path: str) -> tuple[int, bytes]:
    """Status and body of one GET below the base URL. Raises LoadTestError if nobody answers."""
    asker = Asker(target)
    try:
        return asker.fetch("GET", path)
    finally:
        asker.close()
