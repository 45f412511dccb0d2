"""Decides what to run. Pure: no Ray, no vLLM, no network, no clock; `planner.files` alone reads files.

This front door is all that `serving` and `loadtest` may import. Its names stand in `__init__.pyi`, and each is loaded
when it is first asked for: a load test that needs a law of arrivals should not wait for the search for plans.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
