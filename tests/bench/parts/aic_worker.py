"""Runs in AIConfigurator's own environment: questions as JSON lines in, its TTFT and TPOT (or its refusal) out."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import sys
from typing import Any


def main() -> int:
    logging.disable(logging.CRITICAL)
    api: Any = importlib.import_module("aiconfigurator.cli.api")
    for line in sys.stdin:
        answer: dict[str, Any]
        # It prints as it goes; only our lines may reach the pipe.
        with contextlib.redirect_stdout(sys.stderr):
            try:
                result = api.cli_estimate(**json.loads(line))
                answer = {"ttft_ms": float(result.ttft), "tpot_ms": float(result.tpot)}
            except Exception as error:  # whatever it raises is its refusal of this row
                answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
