"""The truth server's one thread: epoll, a kernel timer, and a heap of steps with absolute due times."""

from __future__ import annotations

import gc
import heapq
import os
import random
import re
import select
import socket
import struct
import time
from array import array
from collections import deque
from itertools import count
from multiprocessing.connection import Connection as Pipe

import msgspec

from loadtest.processes import pin_to_core
from loadtest.timer import Timer
from loadtest.truth.config import TruthConfig, TruthLog, Written
from loadtest.truth.script import MODEL, After, Ask, Script, Step, plain, script

LISTEN_BACKLOG = 4096
READ_BYTES = 1 << 18
# Between two looks at the sockets, so that a burst of steps does not keep requests waiting for long.
STEPS_AT_ONCE = 16
REALTIME_PRIORITY = 10

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

GET_LOG = "log"


def truth_main(pipe: Pipe) -> None:
    """TruthConfig in, port out; then TruthConfig to change it, or GET_LOG for a TruthLog and a new log."""
    config: TruthConfig = pipe.recv()
    if config.core is not None:
        pin_to_core(config.core)
    realtime = config.realtime and _ask_for_realtime()
    server = _Server(config, pipe, realtime)
    gc.disable()  # a collection would delay steps, and what is made here holds no cycles worth collecting
    pipe.send(server.port)
    try:
        server.serve()
    except (EOFError, BrokenPipeError):
        return  # whoever started it is gone


def _ask_for_realtime() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
    except PermissionError:
        return False
    return True


class _Answer:
    """One answer under way."""

    __slots__ = ("due_ns", "late_max_ns", "number", "received_ns", "script", "step", "write_ns")

    def __init__(self, number: int, received_ns: int, steps: Script) -> None:
        self.number = number
        self.received_ns = received_ns
        self.script = steps
        self.step: Step | None = None
        self.due_ns = received_ns
        self.write_ns = array("q")
        self.late_max_ns = 0


class _Peer:
    """One connection."""

    __slots__ = ("answer", "events", "fd", "sock", "unread", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.unread = b""
        self.unsent = b""
        self.events = select.EPOLLIN
        self.answer: _Answer | None = None


class _Server:
    def __init__(self, config: TruthConfig, pipe: Pipe, realtime: bool) -> None:
        self._config = config
        self._pipe = pipe
        self._realtime = realtime
        self._rng = random.Random(config.seed)
        self._numbers = count(1)
        self._order = count()
        self._peers: dict[int, _Peer] = {}
        self._steps: list[tuple[int, int, _Peer, _Answer]] = []
        self._queue: deque[tuple[_Peer, _Answer]] = deque()
        self._serving = 0
        self._written: list[Written] = []
        self._cpu_from_s = time.process_time()
        self._timer = Timer()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=LISTEN_BACKLOG)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        for fd in (self._listener.fileno(), self._timer.fd, pipe.fileno()):
            self._epoll.register(fd, select.EPOLLIN)

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def serve(self) -> None:
        """Until the pipe is closed."""
        ours = {
            self._listener.fileno(): self._accept,
            self._timer.fd: self._timer.clear,
            self._pipe.fileno(): self._obey,
        }
        while True:
            busy = self._take_due_steps()
            for fd, events in self._epoll.poll(0 if busy else -1):
                if fd in ours:
                    ours[fd]()
                elif fd in self._peers:
                    self._look_at(self._peers[fd], events)

    def _obey(self) -> None:
        word = self._pipe.recv()
        if word == GET_LOG:
            cpu_s = time.process_time()
            self._pipe.send(TruthLog(tuple(self._written), cpu_s - self._cpu_from_s, self._realtime))
            self._written, self._cpu_from_s = [], cpu_s
        else:
            self._config = word
            self._rng = random.Random(word.seed)
            self._pipe.send(self.port)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = _Peer(sock)
            self._peers[peer.fd] = peer
            self._epoll.register(peer.fd, select.EPOLLIN)

    def _look_at(self, peer: _Peer, events: int) -> None:
        if events & select.EPOLLOUT:
            self._write(peer, b"")
        if events & ~select.EPOLLOUT and peer.fd in self._peers:
            self._read(peer)

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        received_ns = time.monotonic_ns()
        if not data:
            self._close(peer)
            return
        peer.unread += data
        if peer.answer is None:
            self._take_request(peer, received_ns)

    def _take_request(self, peer: _Peer, received_ns: int) -> None:
        end = peer.unread.find(b"\r\n\r\n")
        if end < 0:
            return
        head = peer.unread[: end + 2]
        length = _LENGTH.search(head)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(peer.unread) < whole:
            return
        body, peer.unread = peer.unread[end + 4 : whole], peer.unread[whole:]
        if not head.startswith(b"POST"):
            self._write(peer, plain(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
            return
        try:
            ask = msgspec.json.decode(body, type=Ask)
        except msgspec.MsgspecError as error:
            self._write(peer, plain(400, {"error": {"message": str(error), "type": "invalid_request_error"}}))
            return
        number = next(self._numbers)
        chat = b"/chat/" in head[: head.find(b"\r\n")]
        steps = script(self._config, self._rng, ask, chat, number, prompt_tokens=body.count(b" ") + 1)
        answer = peer.answer = _Answer(number, received_ns, steps)
        if self._config.slots is not None and self._serving >= self._config.slots:
            self._queue.append((peer, answer))
        else:
            self._begin(peer, answer, received_ns)

    def _begin(self, peer: _Peer, answer: _Answer, now_ns: int) -> None:
        self._serving += 1
        answer.due_ns = now_ns
        self._schedule(peer, answer)

    def _schedule(self, peer: _Peer, answer: _Answer) -> None:
        answer.step = next(answer.script)
        answer.due_ns += answer.step.wait_ns
        heapq.heappush(self._steps, (answer.due_ns, next(self._order), peer, answer))

    def _take_due_steps(self) -> bool:
        """True if more are due already."""
        for _ in range(STEPS_AT_ONCE):
            if not self._steps:
                return False
            due_ns = self._steps[0][0]
            now_ns = time.monotonic_ns()
            if due_ns > now_ns:
                self._timer.arm(due_ns)
                return False
            _, _, peer, answer = heapq.heappop(self._steps)
            if peer.answer is answer:
                answer.late_max_ns = max(answer.late_max_ns, now_ns - due_ns)
                self._take_step(peer, answer)
        return True

    def _take_step(self, peer: _Peer, answer: _Answer) -> None:
        step = answer.step
        assert step is not None
        if step.carries_tokens:
            answer.write_ns.append(time.monotonic_ns())
        self._write(peer, step.data)
        if step.after is After.GO_ON:
            self._schedule(peer, answer)
        elif step.after is After.KEEP:
            self._finish(peer, answer, status=int(step.data[9:12]) if step.data.startswith(b"HTTP") else 200)
        elif step.after is After.RESET:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._close(peer)

    def _finish(self, peer: _Peer, answer: _Answer, status: int) -> None:
        peer.answer = None
        # The next begins when this one was to end: were it a little later each time, the queue would be a slower one.
        self._note(answer, status, freed_ns=answer.due_ns)
        if self._config.close_after_each:
            self._close(peer)
        elif peer.unread:
            self._take_request(peer, time.monotonic_ns())

    def _note(self, answer: _Answer, status: int, freed_ns: int) -> None:
        self._serving -= 1
        self._written.append(
            Written(
                response_id=f"truth-{answer.number}",
                status=status,
                received_ns=answer.received_ns,
                token_write_ns=tuple(answer.write_ns),
                late_max_ns=answer.late_max_ns,
            )
        )
        if self._queue:
            peer, waiting = self._queue.popleft()
            self._begin(peer, waiting, max(waiting.received_ns, freed_ns))

    def _write(self, peer: _Peer, data: bytes) -> None:
        data = peer.unsent + data
        try:
            sent = peer.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(peer)
            return
        peer.unsent = data[sent:]
        events = select.EPOLLIN | (select.EPOLLOUT if peer.unsent else 0)
        if events != peer.events:
            peer.events = events
            self._epoll.modify(peer.fd, events)

    def _close(self, peer: _Peer) -> None:
        if self._peers.pop(peer.fd, None) is None:
            return
        answer, peer.answer = peer.answer, None
        self._epoll.unregister(peer.fd)
        peer.sock.close()
        if answer is None:
            return
        if (peer, answer) in self._queue:
            self._queue.remove((peer, answer))
        else:
            self._note(answer, status=0, freed_ns=time.monotonic_ns())
