"""Where a bench trains: on the processor, or where there is one on an accelerator.

Products are of bfloat16 where the device has instructions for them; weights, sums of losses and the
optimizer are float32, and nothing is measured in bfloat16. Files are made, and their speed is
measured, on the processor.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import timing
import torch

CPU = torch.device("cpu")


def name_of(device: torch.device) -> str:
    """Return what the maker calls a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else timing.cpu_name()


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for products of bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def mixed(device: torch.device) -> AbstractContextManager[None]:
    """Return where products are of bfloat16, if that is fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))
