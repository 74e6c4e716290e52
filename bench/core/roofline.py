"""The least time of a piece of work, and how many blocks of a kernel share an SM, by datasheet."""

from __future__ import annotations

from dataclasses import dataclass, field

GB, KIB, TERA = 1e9, 1024, 1e12


@dataclass(frozen=True)
class Gpu:
    """Rates per second at boost clock. Tensor rates are dense and of 16-bit elements unless the
    name says otherwise; `sparse16` counts the products of the dense matrix."""

    name: str
    arch: str  # whose code it runs
    bandwidth: float
    flops: dict[str, float]
    sms: int
    clock: float
    shared_per_sm: int
    special_per_clock: int = 16  # ex2, lg2, rcp of an SM
    registers_per_sm: int = 65536
    threads_per_sm: int = 2048
    blocks_per_sm: int = 32

    @property
    def special(self) -> float:
        return self.sms * self.special_per_clock * self.clock


# NVIDIA A100 80GB SXM, H100 SXM and H200 SXM datasheets; SMs, clocks and shared memory: the
# architecture whitepapers of GA100 and GH100.
HOPPER = {"fp32": 67 * TERA, "fp64": 34 * TERA, "tensor16": 989.5 * TERA, "sparse16": 1979 * TERA,
          "tf32": 494.7 * TERA}  # fmt: skip
GPUS = (
    Gpu("A100", "sm_80", 2039 * GB,
        {"fp32": 19.5 * TERA, "fp64": 9.7 * TERA, "tensor16": 312 * TERA, "sparse16": 624 * TERA,
         "tf32": 156 * TERA}, 108, 1.41e9, 164 * KIB),
    Gpu("H100", "sm_90a", 3350 * GB, HOPPER, 132, 1.98e9, 228 * KIB),
    Gpu("H200", "sm_90a", 4800 * GB, HOPPER, 132, 1.98e9, 228 * KIB),
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What a call cannot do without: bytes of DRAM, FLOP by unit, special functions."""

    bytes: float
    flops: dict[str, float] = field(default_factory=dict)
    special: float = 0


def floor(work: Work, gpu: Gpu) -> tuple[float, str]:
    """The least seconds, and what they are spent on."""
    times = {"memory": work.bytes / gpu.bandwidth, "exp": work.special / gpu.special}
    times |= {unit: amount / gpu.flops[unit] for unit, amount in work.flops.items()}
    bound = max(times, key=times.__getitem__)
    return times[bound], bound


SUBPARTITIONS = 4
REGISTER_GRAIN = 256  # registers of a warp are given out in this many
SHARED_GRAIN, RESERVED_SHARED = 128, 1024  # bytes; the system's part of each block


def occupancy(registers: int, threads: int, shared: int, gpu: Gpu) -> tuple[int, str]:
    """Blocks that share an SM, and what keeps more out."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // REGISTER_GRAIN) * REGISTER_GRAIN
    resident = gpu.registers_per_sm // SUBPARTITIONS // per_warp * SUBPARTITIONS
    block_shared = -(-(shared + RESERVED_SHARED) // SHARED_GRAIN) * SHARED_GRAIN
    limits = {
        "blocks": gpu.blocks_per_sm,
        "threads": gpu.threads_per_sm // (warps * 32),
        "registers": resident // warps,
        "shared": gpu.shared_per_sm // block_shared,
    }
    least = min(limits, key=limits.__getitem__)
    return limits[least], least
