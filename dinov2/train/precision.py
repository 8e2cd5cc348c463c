"""Number formats: what ``train.precision`` means on a device."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch


@dataclass
class Precision:
    """What ``train.precision`` means on this device."""

    dtype: torch.dtype
    scaler: torch.amp.GradScaler

    @classmethod
    def choose(cls, name: str, device: torch.device) -> Precision:
        """auto: bfloat16 where the hardware has it, else float16 with loss scaling, float32 on a CPU."""
        cuda = device.type == "cuda"
        if name == "auto":
            name = "float32" if not cuda else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        if name not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"train.precision {name!r} is not one of auto, float32, bfloat16, float16")
        if name == "float16" and not cuda:
            raise ValueError("train.precision float16 needs a GPU; use float32 or bfloat16")
        return cls(getattr(torch, name), torch.amp.GradScaler(device.type, enabled=name == "float16"))

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Autocast to the chosen type, nothing for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)
