"""Triton's interpreter (TRITON_INTERPRET=1), made to round as a GPU does.

NumPy has no fused multiply-add, so the interpreter's rounds twice; and its bfloat16 rounds ties away from zero and
loses a carry. Here torch and `fastdiff.ops.exact` do both, whose roundings are proved in tests of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fastdiff.ops import exact

INTERPRETED: bool = triton.knobs.runtime.interpret  # as triton.jit reads it when it decorates a function


def make_exact() -> None:
    """Replace the two operations of the interpreter that do not round as a GPU does."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def create_fma(self: Any, a: Any, b: Any, c: Any) -> Any:
        total = exact.fma(*(torch.from_numpy(value.data.copy()) for value in (a, b, c)))
        return TensorHandle(total.numpy(), c.dtype.scalar)

    def cast_impl(self: Any, value: Any, dtype: Any) -> Any:
        if value.dtype.scalar != tl.float32 or dtype.scalar != tl.bfloat16:
            return cast(self, value, dtype)
        rounded = torch.from_numpy(value.data.copy()).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)

    InterpreterBuilder.create_fma = create_fma
    InterpreterBuilder.cast_impl = cast_impl


if INTERPRETED:
    make_exact()
