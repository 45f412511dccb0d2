"""The gateway's HTTP application: what vLLM's front end is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.engine.core import ModelFiles
from serving.errors import ConfigError
from serving.gateway.http import front_end_arguments
from serving.settings import GatewaySettings

MODEL = ModelFiles(path=Path("/models/m"), served_name="m")


def test_vllms_defaults_stand_but_for_ours_and_the_operators() -> None:
    args = {"response_role": "model", "api_key": ["one", "two"], "lora_modules": [{"name": "a", "path": "b"}]}
    found = front_end_arguments(MODEL, GatewaySettings(args=args | {"enable_log_requests": True}))
    assert (found.model, found.served_model_name, found.tool_call_parser) == ("/models/m", ["m"], "hermes")
    assert (found.response_role, found.api_key, found.enable_log_requests) == ("model", ["one", "two"], True)
    assert [(one.name, one.path) for one in found.lora_modules] == [("a", "b")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_key", "secret"),
        ("max_log_len", "3"),
        ("enable_request_id_headers", 1),
        ("chat_template_content_format", "jinja"),
        ("lora_modules", [{"nmae": "a"}]),
        ("default_chat_template_kwargs", "enable_thinking"),
        ("response_role", {1, 2}),
    ],
)
def test_a_value_that_vllm_would_take_for_something_else_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"gateway.args.{name}: ") as caught:
        front_end_arguments(MODEL, GatewaySettings(args={name: value}))
    assert caught.value.field == f"gateway.args.{name}"


@pytest.mark.parametrize(("name", "hint"), [("api_keys", "did you mean `api_key`?"), ("max_model_len", "engine.args")])
def test_a_name_that_the_front_end_does_not_have_is_refused(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"no argument '{name}'") as caught:
        front_end_arguments(MODEL, GatewaySettings(args={name: 1}))
    assert hint in caught.value.remedy
