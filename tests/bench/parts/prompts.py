"""Requests for measurements: prompts of one length that share no prefix, so that no cache helps."""

from __future__ import annotations

import json
import random
from typing import Any

WORDS = (
    *("river", "engine", "garden", "number", "window", "paper", "circle", "mountain", "signal", "bottle", "winter"),
    *("market", "shadow", "bridge", "letter", "copper", "forest", "station", "harbor", "lantern", "meadow", "pepper"),
    *("corner", "ribbon", "saddle", "timber", "valley", "walnut", "yellow", "orange", "coffee", "island", "button"),
)


def messages(seed: str, words: int) -> list[dict[str, str]]:
    """A chat of about `words` + 40 tokens. The seed decides every word, so two seeds share no block."""
    chooser = random.Random(seed)
    text = " ".join(chooser.choice(WORDS) for _ in range(words))
    return [{"role": "user", "content": f"Go on with this list of words: {text}"}]


def chat_body(model: str, chat: list[dict[str, str]], output_tokens: int) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "messages": chat,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": output_tokens,
        "ignore_eos": True,
    }
    return json.dumps(body).encode()
