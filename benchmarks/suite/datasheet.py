"""Rates that vendors state for their devices, dense (without structured sparsity), with the source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Datasheet:
    """TB/s of the memory and TFLOP/s of the matrix units (of the vector units for fp32)."""

    device: str
    bandwidth: float
    fp32: float
    tf32: float
    half: float
    source: str


_SITE = "https://www.nvidia.com/en-us/data-center"

#: Part of the device's name as the driver gives it -> its rates. The first match counts.
DATASHEETS: dict[str, Datasheet] = {
    "H200": Datasheet("NVIDIA H200 SXM", 4.8, 67, 494.5, 989.5, f"{_SITE}/h200/"),
    "H100 PCIe": Datasheet(
        "NVIDIA H100 PCIe", 2.0, 51, 378, 756, "NVIDIA H100 datasheet (2023), PCIe column"
    ),
    "H100": Datasheet(
        "NVIDIA H100 SXM", 3.35, 67, 494.5, 989.5, f"{_SITE}/h100/"
    ),
    "A100-SXM4-80GB": Datasheet(
        "NVIDIA A100 SXM 80GB", 2.039, 19.5, 156, 312, f"{_SITE}/a100/"
    ),
    "A100": Datasheet("NVIDIA A100 40GB", 1.555, 19.5, 156, 312, f"{_SITE}/a100/"),
    "L40S": Datasheet("NVIDIA L40S", 0.864, 91.6, 183, 362, f"{_SITE}/l40s/"),
    "RTX 4090": Datasheet(
        "NVIDIA GeForce RTX 4090", 1.008, 82.6, 82.6, 165.2,
        "NVIDIA Ada GPU architecture whitepaper, appendix A (16-bit products summed in fp32)",
    ),
}  # fmt: skip


def find(device_name: str) -> Datasheet | None:
    """The datasheet of a device; None where there is none."""
    return next((sheet for part, sheet in DATASHEETS.items() if part in device_name), None)


def rates(device_name: str) -> dict[str, float]:
    """Bytes/s under ``copy`` and FLOP/s by precision; empty for an unknown device."""
    sheet = find(device_name)
    if sheet is None:
        return {}
    half = sheet.half
    stated = {"copy": sheet.bandwidth, "fp32": sheet.fp32, "tf32": sheet.tf32, "bf16": half, "fp16": half}
    return {name: value * 1e12 for name, value in stated.items()}
