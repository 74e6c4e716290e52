"""A result made up for the tests: no kernel runs."""

from bench.core.case import Accuracy, Case, Result
from bench.core.timing import Stats


def made_up(ours=1.0, torch=2.0, spread=0.0, right=True, peers=None, **case) -> Result:
    """A result of `ours`, `torch` and `peers` milliseconds, quartiles spread evenly about the
    median."""

    def stats(ms):
        return Stats(ms * 1e-3, ms * 1e-3 * (1 - spread / 2), ms * 1e-3 * (1 + spread / 2), 9)

    fields = {"op": "softmax", "suite": "sweep", "dtype": "fp32", "shape": (16384, 1024)} | case
    return Result(
        case=Case(**fields),
        times={
            name: stats(ms)
            for name, ms in ({"fastops": ours, "torch": torch, "copy": 0.8} | (peers or {})).items()
        },
        traffic=1 << 27,
        accuracy=Accuracy(1e-7 if right else 1e-3, 1e-7, 6e-8),
        ceiling=33e9,
        notes={"torch": "where + softmax"},
    )
