"""vLLM's front-end engine over our engine-core client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.executor import Executor

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def front_end(config: VllmConfig, client: EngineCoreClient) -> AsyncLLM:
    """An unmodified `AsyncLLM` that talks to `client`. Call inside a running event loop.

    Its own statistics stay off: the gateway measures streams itself, engines measure themselves.
    """
    with _made_instead(client):
        return AsyncLLM(config, Executor.get_class(config), log_stats=False, log_requests=False)


@contextmanager
def _made_instead(client: EngineCoreClient) -> Iterator[None]:
    """`AsyncLLM` makes its client itself and takes none; inside, the client it makes is ours."""
    make = EngineCoreClient.make_async_mp_client

    def ours(**_arguments: Any) -> EngineCoreClient:
        return client

    EngineCoreClient.make_async_mp_client = staticmethod(ours)
    try:
        yield
    finally:
        EngineCoreClient.make_async_mp_client = staticmethod(make)
