"""The checksums of lent blocks, from the engine that lends to the engine that pulls.

An engine's scheduler tells its worker which blocks it lends, as it lends them; the worker sums them beside its other
work, so that blocks which are given to others too soon are noticed as well. A worker that pulls asks the worker that
it pulls from. Neither waits for an engine step, so a move does not either.

The socket is on the interface of NIXL's side channel and no more protected; whoever reaches that can write the blocks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec
import zmq

from serving.clock import Clock, SystemClock

logger = logging.getLogger(__name__)

LOOK_MS = 200
KEPT_S = 120.0
"""Leases are shorter; heartbeats may prolong one, and then its sums are missed and its KV is computed anew."""
ANSWER_TIMEOUT_S = 2.0

Sums = Callable[[list[int], int], list[int]]
"""Block ids and the tokens in them → one sum per block (serving.engine.checksums)."""


class Lend(msgspec.Struct, frozen=True, tag=True):
    """From the scheduler: sum these blocks under this name."""

    request_id: str
    block_ids: list[int]
    num_tokens: int


class Ask(msgspec.Struct, frozen=True, tag=True):
    """From a puller: the sums of what is lent under this name."""

    request_id: str


_decoder = msgspec.msgpack.Decoder(Lend | Ask)
_answers = msgspec.msgpack.Decoder(list[int])
_encoder = msgspec.msgpack.Encoder()


class LentSums:
    """A worker's thread that sums what is lent and answers those who ask. `close` ends it."""

    def __init__(self, sums: Sums, host: str, clock: Clock | None = None):
        self._sums, self._clock = sums, clock or SystemClock()
        self._known: dict[str, tuple[float, list[int]]] = {}
        self._waiting: list[tuple[float, str, bytes]] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.address = f"tcp://{host}:{self._socket.bind_to_random_port(f'tcp://{host}')}"
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="ferry-lent-sums", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing.is_set():
            if not self._socket.poll(LOOK_MS):
                continue
            peer, *frames = self._socket.recv_multipart()
            try:
                self._take(peer, _decoder.decode(frames[-1] if frames else b""))
            except (msgspec.DecodeError, ValueError) as error:  # from anybody: it must not end the thread
                logger.warning("a message that is none of ours: %s", error)

    def _take(self, peer: bytes, message: Lend | Ask) -> None:
        name = message.request_id
        if isinstance(message, Lend):
            self._forget_old()
            sums = self._sums(message.block_ids, message.num_tokens)
            self._known[name] = self._clock.now_s(), sums
            for _, asked, waiting in self._waiting:
                if asked == name:
                    self._answer(waiting, sums)
            self._waiting = [one for one in self._waiting if one[1] != name]
        elif name in self._known:
            self._answer(peer, self._known[name][1])
        else:
            self._waiting.append((self._clock.now_s(), name, peer))

    def _answer(self, peer: bytes, sums: list[int]) -> None:
        self._socket.send_multipart([peer, _encoder.encode(sums)])

    def _forget_old(self) -> None:
        now_s = self._clock.now_s()
        self._known = {name: known for name, known in self._known.items() if known[0] >= now_s - KEPT_S}
        # Older ones asked for what was never lent, and have given up.
        self._waiting = [one for one in self._waiting if one[0] >= now_s - ANSWER_TIMEOUT_S]

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._context.destroy(linger=0)


class Lender:
    """The scheduler's side: tells all of an engine's workers what it lends."""

    def __init__(self, addresses: list[str]):
        self.addresses = addresses
        self._context = zmq.Context()
        self._sockets = [self._context.socket(zmq.DEALER) for _ in addresses]
        for socket, address in zip(self._sockets, addresses, strict=True):
            socket.connect(address)

    def lend(self, request_id: str, block_ids: list[int], num_tokens: int) -> None:
        """Does not wait: a worker that does not hear of it gives no sums, and its blocks are computed anew."""
        message = _encoder.encode(Lend(request_id, block_ids, num_tokens))
        for socket in self._sockets:
            try:
                socket.send(message, zmq.DONTWAIT)
            except zmq.Again:
                logger.warning("a worker does not hear what is lent as %s", request_id)

    def close(self) -> None:
        self._context.destroy(linger=0)


def ask(address: str, request_id: str, timeout_s: float = ANSWER_TIMEOUT_S) -> list[int] | None:
    """The sums of what is lent there under this name, or None when no answer comes in time. Blocks."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        socket.send(_encoder.encode(Ask(request_id)))
        if not socket.poll(int(timeout_s * 1000)):
            return None
        try:
            return _answers.decode(socket.recv())
        except msgspec.DecodeError as error:
            logger.warning("%s answers what is no list of sums: %s", address, error)
            return None
