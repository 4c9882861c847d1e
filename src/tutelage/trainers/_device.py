"""What TRL's settings start from on this machine."""

from __future__ import annotations

from typing import Any


def device_settings() -> dict[str, Any]:
    """Full precision on a CPU, where half precision is slow and inexact; TRL's default elsewhere."""
    import torch

    return {} if torch.cuda.is_available() else {"bf16": False, "use_cpu": True, "dataloader_pin_memory": False}
