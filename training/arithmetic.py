"""Choose the precision that is fast on this machine.

Processors differ in this more than in anything else. With instructions for bfloat16 a product in it is faster than
one in float32; without, it falls to a plain loop, and a training step takes two to fifteen times as long
(`python -m benchmarks.steps`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from schemas.errors import UsageError

NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names of such instructions, x86 and ARM, in `torch.cpu.get_capabilities`."""
Attention = Literal["auto", "flash", "cudnn", "efficient", "math"]
"""Kernels of scaled dot-product attention."""
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@lru_cache(maxsize=8)
def fast_dtype(device_type: str) -> torch.dtype:
    """Choose bfloat16 where matrix products in it are fast, else float32. What counts is what the device can do, not a
    measurement: two starts on one machine must not round differently because one of them was disturbed."""
    if device_type == "cuda":
        is_fast = torch.cuda.get_device_capability() >= (8, 0)
    else:
        is_fast = device_type == "cpu" and has_native_bfloat16()
    return torch.bfloat16 if is_fast else torch.float32


def find_device(name: str) -> str:
    """Return the device that an option names; `auto` is a GPU where there is one. Raises UsageError where there is no
    such device."""
    has_gpu = torch.cuda.is_available()
    if name.startswith(("cuda", "gpu")) and not has_gpu:
        raise UsageError(
            f"{name}: torch {torch.__version__} finds no CUDA GPU on this machine; leave the device out, or install a "
            "torch with CUDA and a driver"
        )
    return ("cuda" if has_gpu else "cpu") if name == "auto" else name


def has_native_bfloat16() -> bool:
    """Return whether the processor has instructions for bfloat16 products and torch may use them."""
    found = torch.cpu.get_capabilities()
    is_held_back = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return not is_held_back and any(found.get(name, False) for name in NATIVE_BFLOAT16)


def float32_products(device_type: str) -> str:
    """Choose torch's precision of float32 matrix products: `medium` is TF32 on a GPU and bfloat16 on a processor."""
    return "medium" if device_type == "cuda" or fast_dtype(device_type) is torch.bfloat16 else "highest"


def autocast_dtype(device_type: str, precision: str) -> torch.dtype | None:
    """Choose the dtype for autocast; None: no autocast. bfloat16 is asked for to be fast, so where it is not, float32
    takes its place."""
    return torch.bfloat16 if precision == "bfloat16" and fast_dtype(device_type) is torch.bfloat16 else None


@contextmanager
def arithmetic(threads: int, device_type: str) -> Iterator[None]:
    """Set threads (0: leave them) and float32 products for training. What this process does afterwards is done as
    before."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads or before[0])
    torch.set_float32_matmul_precision(float32_products(device_type))
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def attention(kernel: Attention, device_type: str) -> Iterator[None]:
    """Let one kernel do all attentions of this process, those that are computed again in backward passes included.
    Where a GPU cannot, torch raises RuntimeError: no other takes its place. Raises UsageError for a processor."""
    if device_type == "cpu" and kernel in ("cudnn", "efficient"):
        raise UsageError(
            f"run.attention {kernel}: that kernel needs a GPU; a processor has flash and math, or set auto"
        )
    if kernel == "auto":
        yield
        return
    with sdpa_kernel(KERNELS[kernel]):
        yield


def decisions(device_type: str, precision: str) -> dict[str, Any]:
    """Report the chosen precisions, for the record of a run."""
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native_bfloat16": has_native_bfloat16(),
        "float32_products": float32_products(device_type),
        "autocast": str(autocast_dtype(device_type, precision)).removeprefix("torch."),
        "muon": str(fast_dtype(device_type)).removeprefix("torch."),
    }
