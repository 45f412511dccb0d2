"""Three views of how long requests are, and the way from each to the next.

planner.lengths            laws in a workload file, which draw a `Sample`
planner.queueing.Lengths   a sample as the moments and classes that queueing needs: `request_lengths`
planner.contexts    contexts while they run, for memory: `running_contexts`
"""

from __future__ import annotations

import numpy as np

from planner.contexts import ContextLengths
from planner.queueing import Lengths
from planner.workload import Sample

# Enough to keep mean and spread of contexts within a percent, few enough to look at each.
MOST_CONTEXTS = 200


def request_lengths(sample: Sample, *, prefix_hits: bool = True) -> Lengths:
    """The sample for queueing; with `prefix_hits`, shared beginnings count as cached from the second time on."""
    cached = cached_tokens(sample) if prefix_hits else np.zeros(len(sample), dtype=np.int64)
    return Lengths(
        prompt_tokens=sample.isl.astype(float),
        output_tokens=sample.osl.astype(float),
        cached_tokens=cached.astype(float),
    )


def cached_tokens(sample: Sample, *, block_size_tokens: int = 16) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Prompt tokens found in the prefix cache: whole blocks, never the whole prompt.

    The first request of a group finds nothing. A recording says itself what came before.
    """
    key = sample.stream * (sample.prefix.max(initial=0) + 2) + sample.prefix
    first = np.zeros(len(sample), dtype=bool)
    first[np.unique(key, return_index=True)[1]] = True
    hit = np.where((sample.prefix >= 0) & first, 0, sample.prefix_tokens)
    whole = hit // block_size_tokens * block_size_tokens
    return np.asarray(np.minimum(whole, np.maximum(sample.isl - 1, 0)), dtype=np.int64)


def running_contexts(lengths: Lengths, *, most: int = MOST_CONTEXTS) -> ContextLengths:
    """Contexts at work, from `most` requests spread evenly over the sorted sample, the longest always among them."""
    total = lengths.prompt_tokens + lengths.output_tokens
    order = np.argsort(total, kind="stable")
    if len(order) > most:
        order = order[np.linspace(0, len(order) - 1, most).round().astype(int)]
    prompts, outputs = (values[order].astype(int).tolist() for values in (lengths.prompt_tokens, lengths.output_tokens))
    return ContextLengths(requests=tuple(zip(prompts, outputs, strict=True)))
