"""From a Target to a socket address, and from a Job to the bytes of its request."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from loadtest.types import Job, LoadTestError, Target

USER_AGENT = "ferry-load"

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PATH = re.compile(r"[!-~]*")
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect; `prefix` is the path of the base URL, without a slash at its end."""

    host: str
    port: int
    tls: bool
    prefix: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def parse_base_url(base_url: str) -> Address:
    """Raises LoadTestError. A `/v1` at the end is taken off: endpoints bring their own."""
    try:
        url = urlsplit(base_url if "//" in base_url else f"http://{base_url}")
        port = url.port
    except ValueError as error:
        raise LoadTestError(f"{base_url!r} is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.hostname:
        raise LoadTestError(f"{base_url!r} is not an http or https URL")
    if not _PATH.fullmatch(url.path) or not _is_host(url.hostname):
        raise LoadTestError(f"{base_url!r} cannot be asked for: write its host and path as they go over the wire")
    return Address(url.hostname, port or _default_port(url), url.scheme == "https", _prefix(url.path))


def _is_host(name: str) -> bool:
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return name.isascii()


def _default_port(url: SplitResult) -> int:
    return 443 if url.scheme == "https" else 80


def _prefix(path: str) -> str:
    return path.rstrip("/").removesuffix("/v1").rstrip("/")


def tls_context(target: Target) -> ssl.SSLContext:
    """Raises LoadTestError if the CA file is of no use."""
    try:
        context = ssl.create_default_context(cafile=target.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise LoadTestError(f"the CA file {target.ca_file} cannot be used: {error}") from error
    if not target.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


class RequestWriter:
    """Makes whole requests before the run, so that nothing is built while it goes on."""

    def __init__(self, target: Target, run_id: str) -> None:
        address = parse_base_url(target.base_url)
        lines = [
            f"POST {address.prefix}{target.endpoint} HTTP/1.1",
            f"Host: {address.authority}",
            f"User-Agent: {USER_AGENT}",
            "Content-Type: application/json",
            *header_lines(target.headers),
        ]
        self._head = "\r\n".join(lines)
        self._run_id = run_id

    def request(self, job: Job) -> bytes:
        """Raises LoadTestError if one of the job's headers cannot be sent."""
        lines = [
            self._head,
            f"X-Request-Id: {self._run_id}-{job.number}",
            *header_lines(job.headers),
            f"Content-Length: {len(job.body)}",
            "\r\n",
        ]
        return "\r\n".join(lines).encode("latin-1") + job.body


def header_lines(headers: tuple[tuple[str, str], ...]) -> list[str]:
    """As they go over the wire. Raises LoadTestError for one that may not."""
    lines = []
    for name, value in headers:
        whole = _TOKEN.fullmatch(name) and value.isprintable() and value.isascii()
        if not whole or name.lower() in _OWN_HEADERS:
            # The value may be a key: it is not shown.
            raise LoadTestError(f"the header {name!r} cannot be sent: its name or value is not allowed")
        lines.append(f"{name}: {value}")
    return lines
