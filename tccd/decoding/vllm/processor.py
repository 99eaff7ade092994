"""Validation at admission, through the processor interface of both model runners.

The contrast itself happens before any processor, where both streams' states are; this class changes no logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

from tccd.decoding.vllm import banks
from tccd.decoding.vllm.settings import asked, settings
from tccd.errors import TCCDError

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams


class TCCDProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Refuses bad `tccd_*` parameters, with HTTP 400 in a server; satisfies the loaders of both runners."""

    def __init__(self, vllm_config: Any, *args: Any) -> None:
        """V1 passes (config, device, pin_memory), V2 (config, request states)."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Check a request's `tccd_*` parameters.

        Raises:
            ValueError: they are malformed, or this engine has no bank.
        """
        wanted = asked(sampling_params.extra_args)
        if not wanted:
            return
        if not banks.enabled():
            raise ValueError(
                f"{', '.join(wanted)}: this engine runs without TCCD; its operator turns it on by {banks.VARIABLE}"
            )
        try:
            settings(wanted, banks.loaded())
        except TCCDError as error:
            raise ValueError(str(error)) from error

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
