"""The composition root: what each engine is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.app import Deployed, _engine_spec
from serving.engine.core import ModelFiles, engine_args
from serving.settings import Settings


@pytest.mark.parametrize(
    ("gateway", "args", "told"),
    [
        ({}, {}, ""),
        ({"reasoning_parser": "qwen3"}, {}, "qwen3"),
        ({"reasoning_parser": "qwen3"}, {"reasoning_parser": "deepseek_r1"}, "deepseek_r1"),
    ],
)
def test_engines_know_how_a_model_thinks(gateway: dict[str, str], args: dict[str, str], told: str) -> None:
    settings = Settings.model_validate({"gateway": gateway, "engine": {"args": {"seed": 1, **args}}})
    deployed = Deployed(
        settings=settings,
        model=ModelFiles(path=Path("/models/m"), served_name="m"),
        on_cpu=True,
        admin_token="secret",
    )
    for pool in settings.pools:
        spec = _engine_spec(deployed, pool)
        found = engine_args(spec.model, spec.settings, on_cpu=True)
        assert (found.reasoning_parser, found.seed) == (told, 1)
