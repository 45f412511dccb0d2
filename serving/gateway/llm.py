"""vLLM's front-end engine over our engine-core client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from vllm.exceptions import RetryableRequestError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.executor import Executor

from serving.contexts.pool_client import NO_ENGINE

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.outputs import RequestOutput


class FrontEnd(AsyncLLM):
    """vLLM's, but a request that no engine could go on with ends as what it is, a 503. What an engine failed itself
    stays an internal error."""

    async def generate(self, *arguments: Any, **more: Any) -> AsyncGenerator[RequestOutput, None]:
        async with aclosing(super().generate(*arguments, **more)) as outputs:
            async for output in outputs:
                if any(one.stop_reason == NO_ENGINE for one in output.outputs):
                    raise RetryableRequestError(
                        "no engine became ready in time to go on with this request; send it anew"
                    )
                yield output


def front_end(config: VllmConfig, client: EngineCoreClient) -> AsyncLLM:
    """An `AsyncLLM` that talks to `client`. Call inside a running event loop.

    Its own statistics stay off: the gateway measures streams itself, engines measure themselves.
    """
    with _made_instead(client):
        return FrontEnd(config, Executor.get_class(config), log_stats=False, log_requests=False)


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
