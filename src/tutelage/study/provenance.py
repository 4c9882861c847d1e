"""What a result was made with: versions and machine, as every record of this library keeps them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import tutelage

ENGINE_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "reasoning-gym", "math-verify", "numpy", "scipy")


def versions(packages: Sequence[str] = ENGINE_PACKAGES) -> dict[str, str]:
    """Versions of Python, this library and those of `packages` that are installed."""
    found = {"python": platform.python_version(), "tutelage": tutelage.__version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Cores, system and processor; the GPU where torch is loaded and sees one."""
    facts: dict[str, Any] = {"cpus": os.cpu_count(), "system": platform.system(), "processor": platform.machine()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts
