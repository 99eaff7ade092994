"""Which rows of a batch the erased stream runs, and what it has to copy first: arithmetic on token counts.

In one step vLLM runs some tokens of every request in the batch, one row each, those of a request side by side: a
part of a prompt (chunked prefill), or one new token. Of a TCCD request the rows in its tail run a second time,
erased. An erased row attends to its whole past in the second cache: erased tail rows of earlier steps, and
before them the prefix, which is the same in both streams. The prefix is never run twice. Its blocks are copied
from the first cache when the first erased row comes.

Nothing here knows tensors of vLLM, so a simulation of two caches tests it position by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tccd.decoding.vllm.settings import Settings


@dataclass
class Tail:
    """The text tail of one TCCD request, as the runner keeps it from step to step.

    Attributes:
        settings: what the request asked for.
        start: position of its first token.
        prompt: number of the request's prompt tokens.
        started: whether the erased cache holds the prefix before it; False again after a preemption, which
            gives its blocks away.
    """

    settings: Settings
    start: int
    prompt: int
    started: bool = False


@dataclass(frozen=True)
class Chunk:
    """The part of a request that one step runs.

    Attributes:
        tail: its request's text tail.
        index: the request's place in the batch.
        start: its first row among the step's rows.
        count: its rows in this step.
        computed: its tokens in the cache before this step.
    """

    tail: Tail
    index: int
    start: int
    count: int
    computed: int

    @property
    def skipped(self) -> int:
        """Rows before the text tail, which the clean stream computes for both."""
        return max(0, self.tail.start - self.computed)

    @property
    def end(self) -> int:
        """Tokens in the cache after this step."""
        return self.computed + self.count

    @property
    def strength(self) -> float:
        """`alpha_cd` of the token that this step samples."""
        return self.tail.settings.config.alpha_cd if self.contrasts else 0.0

    @property
    def contrasts(self) -> bool:
        """Whether the token that this step samples is contrasted at all."""
        config = self.tail.settings.config
        return config.tokens == "all" or self.end == self.tail.prompt


@dataclass(frozen=True)
class Plan:
    """What the erased stream does in one step; erased rows are grouped by request, in batch order.

    Attributes:
        chunks: the requests with at least one erased row.
        rows: which of the step's rows the erased rows are, shape (E,).
        offsets: where each request's erased rows begin, shape (requests + 1,).
        lengths: tokens that each request's last erased row attends to, shape (requests,).
        copies: (request's place in the batch, its first `n` blocks), for prefixes that the erased cache lacks.
    """

    chunks: tuple[Chunk, ...]
    rows: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    copies: tuple[tuple[int, int], ...]

    @property
    def last(self) -> np.ndarray:
        """Each request's last erased row, which its next token is sampled from, shape (requests,)."""
        return self.offsets[1:] - 1


def plan(chunks: Sequence[Chunk], block_size: int) -> Plan | None:
    """The erased rows of a step.

    A position before the tail is the same in both streams, so the erased cache takes a copy of the clean one's
    blocks when a request's first erased row comes: those that lie whole before the tail, and the block that the
    tail begins in unless its erased part is there already (a prefix-cache hit, or an earlier step).

    Args:
        chunks: the TCCD requests of the step, in batch order.
        block_size: positions in a block of the cache.

    Returns:
        None where no row is erased.
    """
    active = tuple(c for c in chunks if c.skipped < c.count)
    if not active:
        return None
    counts = np.array([c.count - c.skipped for c in active])
    copies = []
    for c in active:
        if not c.tail.started:
            whole, rest = divmod(c.tail.start, block_size)
            copies.append((c.index, whole + (rest > 0 and c.computed <= c.tail.start)))
    return Plan(
        chunks=active,
        rows=np.concatenate([np.arange(c.start + c.skipped, c.start + c.count) for c in active]),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        lengths=np.array([c.end for c in active], dtype=np.int32),
        copies=tuple((index, blocks) for index, blocks in copies if blocks),
    )
