"""Results of other load tools as our document, and ours in the shape of `vllm bench serve`. Pure.

Shapes were read in the tools' sources: vLLM 0.32 (`vllm/benchmarks/serve.py`), aiperf 0.13 (`JsonExportData`, schema
1.1) and GuideLLM 0.8 (`GenerativeBenchmarksReport`). A tool's words mean other things than ours: each document says how
they were taken, and what the tool does not tell is missing and never 0.
"""
