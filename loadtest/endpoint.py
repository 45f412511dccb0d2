"""Questions to an endpoint outside of the measured time. Each is bounded in time and in size."""

from __future__ import annotations

import json
import re
from typing import Any

from loadtest.http.address import USER_AGENT, header_lines, parse_base_url, tls_context
from loadtest.http.blocking import Answer, BlockingConnection
from loadtest.http.framing import BadHttp
from loadtest.remedies import for_status
from loadtest.types import LoadTestError, Target

ANSWER_WITHIN_S = 10.0
# The metrics of a thousand engines have room in it.
MAX_BODY_BYTES = 64 << 20
MAX_TOLD_BYTES = 200
# Path and query, as they may stand in a request's first line.
ON_THE_WIRE = re.compile(r"[!-~]*")
MODELS = "/v1/models"
MODELS_TOLD = 10


class Asker:
    """One connection for questions, kept open between them; a new one after each failure. Close it."""

    def __init__(self, target: Target, timeout_s: float = ANSWER_WITHIN_S) -> None:
        """`timeout_s` is for a whole answer. Raises LoadTestError for a base URL or a CA file that is of no use."""
        address = parse_base_url(target.base_url)
        self._prefix = address.prefix
        self._timeout_s = timeout_s
        self._lines = [
            f"Host: {address.authority}",
            f"User-Agent: {USER_AGENT}",
            "Content-Type: application/json",
            *header_lines(target.headers),
        ]
        self.where = f"{address.authority}{address.prefix}"
        tls = tls_context(target) if address.tls else None
        self._connection = BlockingConnection(address, tls, max_body_bytes=MAX_BODY_BYTES)

    def fetch(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """Status and body of the answer. Raises LoadTestError if none comes, in time or at all."""
        answer = self._fetch(method, path, body)
        return answer.status, answer.body

    def ask(self, method: str, path: str, question: Any = None) -> Any:
        """The answer, parsed. Raises LoadTestError unless it is JSON with status 200."""
        answer = self._fetch(method, path, None if question is None else json.dumps(question))
        where = f"{self.where}{path}"
        if answer.status != 200:
            told = answer.headers.get(b"location") or answer.body
            shown = told[:MAX_TOLD_BYTES].decode(errors="replace").strip()
            raise LoadTestError(f"{where} answered {answer.status}: {shown}{for_status(answer.status)}")
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            shown = answer.body[:40].decode(errors="replace").strip()
            raise LoadTestError(
                f"{where} did not answer in JSON but with {shown!r}: is --base-url that of an OpenAI-compatible server?"
            ) from error

    def close(self) -> None:
        self._connection.close()

    def _fetch(self, method: str, path: str, body: str | None) -> Answer:
        if not ON_THE_WIRE.fullmatch(path):
            raise LoadTestError(f"{self.where}{path} cannot be asked for: write its path and query percent-encoded")
        data = (body or "").encode()
        length = [f"Content-Length: {len(data)}"] if body is not None else []
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", *self._lines, *length, "\r\n"]
        try:
            return self._connection.exchange("\r\n".join(lines).encode("latin-1") + data, self._timeout_s)
        except TimeoutError as error:
            raise LoadTestError(f"no whole answer of {self.where}{path} within {self._timeout_s:g} s") from error
        except BadHttp as error:
            raise LoadTestError(f"what {self.where}{path} answers is of no use: {error}") from error
        except OSError as error:
            raise LoadTestError(f"cannot reach {self.where}{path}: {error or type(error).__name__}") from error


def served_models(target: Target, timeout_s: float = ANSWER_WITHIN_S) -> tuple[str, ...]:
    """The first models that `/v1/models` names, 10 at most. Raises LoadTestError if it names none."""
    asker = Asker(target, timeout_s)
    try:
        names = [one["id"] for one in asker.ask("GET", MODELS)["data"][:MODELS_TOLD]]
    except (LookupError, TypeError) as error:
        raise LoadTestError(f"{asker.where}{MODELS} names no model; give --model") from error
    finally:
        asker.close()
    if not names or not all(isinstance(name, str) for name in names):
        raise LoadTestError(f"{asker.where}{MODELS} names no model; give --model")
    return tuple(names)


def first_model(target: Target, timeout_s: float = ANSWER_WITHIN_S) -> str:
    """The first model that `/v1/models` names. Raises LoadTestError."""
    return served_models(target, timeout_s)[0]


def get(target: Target, path: str) -> tuple[int, bytes]:
    """Status and body of one GET below the base URL. Raises LoadTestError if nobody answers."""
    asker = Asker(target)
    try:
        return asker.fetch("GET", path)
    finally:
        asker.close()
