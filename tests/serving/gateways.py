"""Whole gateways in this process: vLLM's real application over scripted engines, and a real controller, without Ray.

The model has a tokenizer and no weights: a gateway never looks at them. Token n is the word `wn`.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from serving.clock import SystemClock
from serving.contexts.pool_client import PoolClient
from serving.engine.channel import ChannelKeys
from serving.engine.core import ModelFiles
from serving.engine.process import EngineSpec
from serving.gateway.error_envelope import AsgiApp
from serving.gateway.gateway import Gateway
from serving.gateway.spec import GatewaySpec
from serving.pools.controller import Controller
from serving.settings import EngineSettings, GatewaySettings
from serving.types import PoolRole
from tests.fakes import ScriptedEngine, until

MODEL, TOKEN = "words", "secret"
BEGIN = "<s>"
BEGIN_ID, WORDS = 1, 1100
"""Every prompt begins with BEGIN, so that scripted engines say the words from 1000 on."""
CHAT_TEMPLATE = (
    BEGIN + "{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": WORDS,
    "max_position_embeddings": 4096,
    "bos_token_id": BEGIN_ID,
    "eos_token_id": 2,
}


def words(count: int, start: int = 0) -> str:
    """The text of an answer's tokens from `start` to before `count`."""
    return "".join(f" w{1000 * BEGIN_ID + n}" for n in range(start, count))


def write_model(folder: Path) -> ModelFiles:
    vocabulary = ["<unk>", BEGIN, "</s>", "user", "assistant"]
    vocabulary += [f"w{n}" for n in range(len(vocabulary), WORDS)]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token="</s>", unk_token="<unk>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return ModelFiles(path=folder, served_name=MODEL)


class Gateways:
    """A controller, scripted engines by name (`p…` prefill, `d…` decode) and gateways by id."""

    def __init__(
        self,
        model: ModelFiles,
        *,
        disaggregate_from_tokens: int = 1000,
        needs_prefill: bool = False,
        controller: type[Controller] = Controller,
    ) -> None:
        self.keys, self.clock = ChannelKeys.generate(), SystemClock()
        self.controller = controller(keys=self.keys, clock=self.clock, settle_s=0.0)
        self.engines: dict[str, ScriptedEngine] = {}
        self.apps: dict[str, AsgiApp] = {}
        self.clients: dict[str, httpx.AsyncClient] = {}
        self._gateways: dict[str, Gateway] = {}
        self._held: set[tuple[str, str]] = set()
        self._spec = GatewaySpec(
            settings=GatewaySettings(replicas=2, disaggregate_from_tokens=disaggregate_from_tokens),
            engine=EngineSpec(
                model=model, settings=EngineSettings(kv_cache_gib=0.1, dtype="float32"), pool="words", on_cpu=True
            ),
            admin_token=TOKEN,
            needs_prefill=needs_prefill,
        )

    async def start(self, *names: str) -> None:
        """Start engines that generate only as allowed, and let them join."""
        roles = {"p": PoolRole.PREFILL, "d": PoolRole.DECODE}
        for name in names:
            engine = ScriptedEngine(name, roles[name[0]], keys=self.keys, clock=self.clock, held=self._held)
            engine.pace()
            self.engines[name] = engine
            await self.controller.announce(engine.replica)
        while len((view := await self.controller.watch(-1, 0.0)).ready()) < len(self.engines):
            await self.controller.watch(view.version, 0.1)

    async def open(self, gateway_id: str) -> httpx.AsyncClient:
        """Open a gateway; returns a client of it that may use the admin API too, once every engine is linked."""
        gateway = Gateway(
            self._spec, gateway_id=gateway_id, keys=self.keys, controller=self.controller, clock=self.clock
        )
        self._gateways[gateway_id] = gateway
        app = self.apps[gateway_id] = await gateway.open()
        client = self.clients[gateway_id] = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url=f"http://{gateway_id}",
            headers={"authorization": f"Bearer {TOKEN}"},
            timeout=30,
        )
        await until(lambda: len(self.pool(gateway_id).engines.candidates()) == len(self.engines))
        return client

    def pool(self, gateway_id: str) -> PoolClient:
        return self._gateways[gateway_id]._pool

    def allow(self, steps: int) -> None:
        """Let every engine make that many steps."""
        for engine in self.engines.values():
            engine.allow(steps)

    async def close(self) -> None:
        for client in self.clients.values():
            await client.aclose()
        for gateway in self._gateways.values():
            await gateway.close()
        for engine in self.engines.values():
            await self.controller.leave(engine.name)
            await engine.close()
        await self.controller.close()
