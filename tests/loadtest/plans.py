"""A plan of a load to change in tests."""

from __future__ import annotations

from loadtest.load_plan import LoadPlan

CHAT = "/v1/chat/completions"

PLAN = LoadPlan(
    endpoint=CHAT,
    model="m",
    input_words=10,
    output_tokens=4,
    ignore_eos=False,
    stream=True,
    seed=3,
    request_rate_rps=10.0,
    burstiness=1.0,
    family=None,
    cv=1.0,
    ramp_from_rps=None,
    bursts="",
    rate_file=None,
    trace=None,
    trace_format="",
    trace_keep=1.0,
    requests=20,
    duration_s=None,
)
