"""The client over TLS, against a server with a certificate of its own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.jobs import body, closed_loop, open_loop
from loadtest.runner import run
from loadtest.spec import RunSpec
from loadtest.types import Limits, LoadTestError, Outcome, Target
from tests.loadtest.test_reading import WHOLE

REQUESTS = 6


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here to make a certificate")
    arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [
            "openssl",
            *arguments.split(),
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    return tmp_path / "cert.pem"


@pytest.fixture
def port(certificate: Path) -> Iterator[int]:
    with tls_server(certificate) as port:
        yield port


@contextlib.contextmanager
def tls_server(certificate: Path, handshake_after_s: float = 0.0) -> Iterator[int]:
    """Answers every request with the same stream, each piece in a TLS record of its own; yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))

    def talk(plain: socket.socket) -> None:
        time.sleep(handshake_after_s)
        # Clients that do not trust us, or are done, end the conversation in their own way.
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as peer:
            while peer.recv(65_536):
                for _, piece in WHOLE:
                    peer.sendall(piece)

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener was closed: the test is over
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def spec(target: Target) -> RunSpec:
    jobs = closed_loop([body(target.endpoint, "m", "hi", 3, stream=True)] * REQUESTS)
    return RunSpec(target, jobs, Limits(concurrency=2, timeout_s=10, connect_timeout_s=5))


def test_streams_come_whole_over_reused_tls_connections(port: int, certificate: Path) -> None:
    result = run(spec(Target(f"https://localhost:{port}", ca_file=str(certificate))))
    assert [(one.outcome, len(one.event_ns)) for one in result.records] == [(Outcome.OK, 3)] * REQUESTS
    assert result.workers[0].reused == REQUESTS - 2


@pytest.mark.slow
def test_a_slow_handshake_is_not_the_clients_lag(certificate: Path) -> None:
    with tls_server(certificate, handshake_after_s=0.2) as port:
        jobs = open_loop([body("/v1/chat/completions", "m", "hi", 3, stream=True)] * 3, [0.0, 1.1, 1.1])
        result = run(RunSpec(Target(f"https://localhost:{port}", verify_tls=False), jobs, Limits(timeout_s=10)))
    anew = [one for one in result.records if not one.reused]
    assert all(one.ok for one in result.records) and len(anew) == 2
    waited, lags = [one.send_ns - one.due_ns for one in anew], [one.lag_ns for one in anew]
    assert max(waited) > 200e6 and all(lag is not None and lag < 100e6 for lag in lags)


def test_any_certificate_will_do_if_asked_for(port: int) -> None:
    result = run(spec(Target(f"https://localhost:{port}", verify_tls=False)))
    assert all(one.ok for one in result.records)


def test_a_certificate_that_nobody_vouches_for_is_refused(port: int) -> None:
    with pytest.raises(LoadTestError, match="certificate verify failed"):
        run(spec(Target(f"https://localhost:{port}")))


def test_a_server_without_tls_is_told_at_once() -> None:
    def answer_plainly() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=answer_plainly)
        answering.start()
        with pytest.raises(LoadTestError, match="cannot connect"):
            run(spec(Target(f"https://127.0.0.1:{listener.getsockname()[1]}", verify_tls=False)))
        answering.join(timeout=5)
