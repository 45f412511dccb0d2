"""Recorded loads of real services: when requests came, how long they were. The files are not part of this project.

What the formats mean is the planner's knowledge; here files are opened, and traces made ready to be replayed.
"""

from loadtest.traces.files import SOURCES, TraceSource, load_trace
from loadtest.traces.replay import thinned

__all__ = ["SOURCES", "TraceSource", "load_trace", "thinned"]
