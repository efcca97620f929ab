"""Hardware to plan for: memory, arithmetic, links; data sheets of GPUs, a short probe of a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.core.errors import InputError, did_you_mean

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Device:
    """One processor that trains.

    Attributes:
        name: What tables call it.
        memory: Bytes of memory, as the driver reports them.
        bf16: Dense matrix products in bfloat16 at best, in FLOP/s.
        fp32: The same in float32.
        efficiency: Assumed share of that in a training step.
        bandwidth: Bytes per second from and to its memory.
        link: Bytes per second to another device of the same machine, one direction.
        network: The same to a device of another machine.
        per_node: Devices of one machine.
        reserved: Bytes that the driver and the libraries take.
        usable: Share of the rest that can be filled: the allocator leaves gaps.
        source: Where the numbers come from.
    """

    name: str
    memory: int
    bf16: float
    fp32: float
    efficiency: float
    bandwidth: float
    link: float = 0.0
    network: float = 0.0
    per_node: int = 1
    reserved: int = 0
    usable: float = 1.0
    source: str = ""

    @property
    def is_cpu(self) -> bool:
        """Whether this is the machine's own processor."""
        return self.name == "cpu"

    def rate(self, precision: str) -> float:
        """FLOP/s that a training step is assumed to reach in a precision."""
        return self.efficiency * (self.fp32 if precision == "float32" else self.bf16)

    def between(self, world: int) -> float:
        """Bytes per second of the slowest link among `world` devices; 0 for one device."""
        if world == 1:
            return 0.0
        return self.link if world <= self.per_node else self.network


def _gpu(name: str, mib: int, bf16: float, fp32: float, *speeds: float, source: str) -> Device:
    efficiency, bandwidth, link, network = speeds
    return Device(
        name=name,
        memory=mib * MIB,
        bf16=bf16 * 1e12,
        fp32=fp32 * 1e12,
        efficiency=efficiency,
        bandwidth=bandwidth * 1e9,
        link=link * 1e9,
        network=network * 1e9,
        per_node=8,
        # CUDA context with cuBLAS workspaces and NCCL buffers.
        reserved=int(0.8 * GIB),
        usable=0.94,
        source=source,
    )


# Memory as nvidia-smi shows it (MiB); peaks without sparsity, in TFLOP/s (float32 without TF32);
# assumed share of the peak; memory bandwidth, link and network in GB/s. NVLink counts in one
# direction; cards without it talk through PCIe 4.0 x16. The network is assumed: 200 Gb/s per device
# for A100, 400 Gb/s for H100, and 200 Gb/s per machine of eight for cards without NVLink.
DEVICES: dict[str, Device] = {
    "a100-40": _gpu(
        *("A100 40GB", 40536, 312, 19.5, 0.40, 1555, 300, 25),
        source="NVIDIA A100 data sheet (SXM)",
    ),
    "a100-80": _gpu(
        *("A100 80GB", 81920, 312, 19.5, 0.40, 2039, 300, 25),
        source="NVIDIA A100 data sheet (SXM)",
    ),
    "h100-80": _gpu(
        *("H100 80GB", 81559, 989, 67, 0.35, 3350, 450, 50),
        source="NVIDIA H100 data sheet (SXM)",
    ),
    "h200": _gpu(
        *("H200 141GB", 143771, 989, 67, 0.35, 4800, 450, 50),
        source="NVIDIA H200 data sheet (SXM)",
    ),
    "l40s": _gpu(
        *("L40S 48GB", 46068, 362, 91.6, 0.35, 864, 25, 3.1), source="NVIDIA L40S data sheet"
    ),
    "rtx4090": _gpu(
        *("RTX 4090 24GB", 24564, 165.2, 82.6, 0.40, 1008, 20, 3.1),
        source="NVIDIA Ada GPU architecture, appendix A (float32 accumulation)",
    ),
}
"""GPUs by the name that `--device` takes."""

_SHORT = {"a100": "a100-80", "h100": "h100-80", "4090": "rtx4090"}

CPU_EFFICIENCY = {"float32": 0.70, "bfloat16": 0.50}
"""Assumed share of the probe's rate in a training step: what lies between matrix products on a CPU
costs more than on a GPU, and relatively more in bfloat16."""


def find_device(text: str) -> Device:
    """The device called `text`; `cpu` is this machine, measured for about a second.

    Raises:
        InputError: There is no such device.
    """
    name = text.lower()
    if name == "cpu":
        return this_cpu()
    name = _SHORT.get(name, name)
    if name not in DEVICES:
        raise InputError(f"--device {text}: {did_you_mean(text, [*DEVICES, 'cpu'])}")
    return DEVICES[name]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a short measurement gave: FLOP/s of matrix products, bytes per second of copies."""

    fp32: float
    bf16: float
    bandwidth: float


def this_cpu(probe: Probe | None = None, memory: int | None = None) -> Device:
    """This machine's processor.

    Args:
        probe: Its speed; measured here by default, which takes about a second.
        memory: Bytes of memory; the machine's by default.
    """
    from expunge.run.environment import memory_bytes

    found = gemm_probe() if probe is None else probe
    installed = memory if memory is not None else memory_bytes() or 0
    return Device(
        name="cpu",
        memory=installed,
        # The efficiency of both precisions, so that `rate` needs no exception.
        bf16=found.bf16 * CPU_EFFICIENCY["bfloat16"],
        fp32=found.fp32 * CPU_EFFICIENCY["float32"],
        efficiency=1.0,
        bandwidth=found.bandwidth,
        per_node=1,
        usable=0.95,
        source=f"matrix products measured here: {found.fp32 / 1e9:.0f} GFLOP/s in float32, "
        f"{found.bf16 / 1e9:.0f} in bfloat16",
    )


def gemm_probe(*, size: int = 1024, seconds: float = 0.4) -> Probe:
    """Measure matrix products and copies. Imports torch.

    Args:
        size: Rows and columns of the matrices.
        seconds: Time for each of the three measurements, the warm-up not counted.
    """
    import torch

    def rate(dtype: torch.dtype) -> float:
        left = torch.ones(size, size, dtype=dtype)
        right = torch.ones(size, size, dtype=dtype)
        return 2 * size**3 / _fastest(lambda: torch.mm(left, right), seconds)

    source = torch.ones(16 * MIB, dtype=torch.uint8)
    target = torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source), seconds)
    return Probe(
        fp32=rate(torch.float32),
        bf16=rate(torch.bfloat16),
        bandwidth=2 * source.numel() / copied,  # read and written
    )


def _fastest(work: object, seconds: float) -> float:
    """Seconds of the fastest call: what other processes do only ever adds to it."""
    import time

    assert callable(work)
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best
