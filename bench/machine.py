"""What a measurement was made on, and when."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def gpu(device: torch.device) -> str:
    """Return a GPU's name, memory, driver and the CUDA that torch was built with."""
    found = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, driver {driver}, CUDA {torch.version.cuda}"


def describe(device: torch.device | None = None) -> dict[str, str | int]:
    """Return processor, cores, memory, the widest instruction set that torch uses, system and GPU, JSON-ready."""
    return {
        **({"gpu": gpu(device)} if device is not None and device.type == "cuda" else {}),
        "cpu": cpu(),
        "cores": os.cpu_count() or 1,
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }
