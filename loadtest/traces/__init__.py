"""Recorded loads of real services: when requests came, how long they were. The files are not part of this project."""

from loadtest.traces.files import SOURCES, TraceSource, load_trace
from loadtest.traces.replay import thinned
from loadtest.traces.types import BadLine, Trace, TraceRequest

__all__ = ["SOURCES", "BadLine", "Trace", "TraceRequest", "TraceSource", "load_trace", "thinned"]
