"""What the engines of one run write of each request, in plain lists: they are read and written one by one."""

from __future__ import annotations

from planner.simulate.requests import Requests


class Ledger:
    """`goal_tokens`: context that prefill must reach; `done_tokens` of it come with the request (prefix cache, KV).

    `left_tokens`: output still to come. Times in seconds; a negative one has not come yet.
    """

    __slots__ = (
        "arrival_s",
        "cached_tokens",
        "done_tokens",
        "finish_s",
        "first_token_s",
        "goal_tokens",
        "joined_step",
        "left_tokens",
    )

    def __init__(self, requests: Requests) -> None:
        count = len(requests)
        self.goal_tokens: list[int] = requests.prompt_tokens.tolist()
        self.left_tokens: list[int] = requests.output_tokens.tolist()
        self.cached_tokens: list[int] = requests.cached_tokens.tolist()
        self.done_tokens = list(self.cached_tokens)
        self.arrival_s: list[float] = requests.arrival_s.tolist() or [0.0] * count
        self.first_token_s = [-1.0] * count
        self.finish_s = [-1.0] * count
        self.joined_step = [0] * count

    def bring_kv(self, request: int, arrival_s: float) -> None:
        """The request arrives elsewhere with the KV of its prompt and the first token made."""
        self.arrival_s[request] = arrival_s
        self.done_tokens[request] = self.goal_tokens[request]
        self.cached_tokens[request] = 0
