"""A server whose latencies are known: it answers like a model on a schedule and logs what it really did.

`ferry load calibrate` measures the client against it, and so do the tests. It is no part of serving.
"""

from loadtest.truth.config import Law, TruthConfig, TruthLog, Written
from loadtest.truth.process import TruthServer
from loadtest.truth.queues import Queue

__all__ = ["Law", "Queue", "TruthConfig", "TruthLog", "TruthServer", "Written"]
