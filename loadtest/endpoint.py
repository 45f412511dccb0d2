"""Questions to an endpoint outside of the measured time."""

from __future__ import annotations

import http.client
import json

from loadtest.http.address import parse_base_url, tls_context
from loadtest.types import LoadTestError, Target

ANSWER_WITHIN_S = 10.0
MODELS = "/v1/models"


def first_model(target: Target) -> str:
    """The first model that `/v1/models` names. Raises LoadTestError."""
    where = _where(target, MODELS)
    status, body = get(target, MODELS)
    if status != 200:
        raise LoadTestError(f"{where} answered {status}: {body[:200].decode(errors='replace')}")
    try:
        model: str = json.loads(body)["data"][0]["id"]
    except (ValueError, LookupError, TypeError) as error:
        raise LoadTestError(f"{where} names no model; give --model") from error
    return model


def get(target: Target, path: str) -> tuple[int, bytes]:
    """Status and body of one GET below the base URL. Raises LoadTestError if nobody answers."""
    address = parse_base_url(target.base_url)
    connection = (
        http.client.HTTPSConnection(address.host, address.port, timeout=ANSWER_WITHIN_S, context=tls_context(target))
        if address.tls
        else http.client.HTTPConnection(address.host, address.port, timeout=ANSWER_WITHIN_S)
    )
    try:
        connection.request("GET", f"{address.prefix}{path}", headers=dict(target.headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise LoadTestError(f"cannot reach {_where(target, path)}: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _where(target: Target, path: str) -> str:
    address = parse_base_url(target.base_url)
    return f"{address.authority}{address.prefix}{path}"
