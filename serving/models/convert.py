"""A program of its own: GGUF file -> safetensors folder in bf16, with tokenizer and chat template.

    python -P convert.py FILE.gguf OUTPUT_FOLDER

It runs as a child process, so that Ferry's own process never imports torch and gets its memory back at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(gguf: Path, output: Path) -> None:
    """Dequantizes `gguf` and writes config, weights, tokenizer and chat template into `output`."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype="bfloat16",
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
