"""What vLLM loads whatever `VLLM_PLUGINS` says: a logits processor that changes no logits, and watches.

In the front end it refuses `tccd_*` parameters that this engine can't decode; in a worker it stops the start where
the hooks or the banks of the engine's configuration are missing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

from tccd.decoding.vllm import guard, promise

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams


class TCCDProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Refuses what would be decoded plainly; satisfies the loaders of both runners.

    Args:
        vllm_config: the engine's configuration, in a worker.
        args: V1 passes (device, pin_memory), V2 (request states).

    Raises:
        TCCDError: this worker lacks the hooks or the banks that the configuration promises.
    """

    def __init__(self, vllm_config: Any, *args: Any) -> None:
        promise.check(vllm_config)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Check a request's `tccd_*` parameters.

        Raises:
            VLLMValidationError: they are malformed, or this engine runs without TCCD.
        """
        guard.wanted(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """True: V1 may skip this processor."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """V1: nothing is kept."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: no request's logits are changed here."""
        return False

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """The logits, as they are."""
        return logits


if "vllm.v1.engine.input_processor" in sys.modules:  # a front end, whose general plugin may have been left out
    guard.install()
