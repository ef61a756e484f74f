"""What takes which share of a training step: python benchmarks/profile_step.py [bare|residual D]

On a GPU the kernels of one replayed step by their time there; without one the operations by their own CPU time.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_training import BATCH, GPU, OurLoop, write_patches
from torch.profiler import ProfilerActivity, profile


def step_profile(loop, order):
    """(microseconds per step, calls per step, name) of every kernel, or of every operation without a GPU."""
    loop.epoch(order)
    with profile(activities=[ProfilerActivity.CUDA if GPU else ProfilerActivity.CPU]) as found:
        loop.epoch(order)
    steps = len(loop.losses)
    rows = [(e.self_device_time_total if GPU else e.self_cpu_time_total, e.count, e.key) for e in found.key_averages()]
    return sorted(((time / steps, count / steps, name) for time, count, name in rows), reverse=True)


def main() -> None:
    block, D = sys.argv[1:3] if len(sys.argv) > 2 else ("bare", "128")
    with tempfile.TemporaryDirectory() as folder:
        archive = write_patches(Path(folder))
        rows = step_profile(OurLoop(archive, int(D), block), np.arange(archive.n_rows))
    total = sum(us for us, _, _ in rows)
    device = torch.cuda.get_device_name() if GPU else "CPU"
    print(f"{block} student, D = {D}, B = {BATCH}, {device}: {total:,.0f} us per step in these")
    for us, count, name in rows[:20]:
        print(f"{us / total:6.1%} {us:9.2f} us {count:6.1f} x  {name[:90]}")


if __name__ == "__main__":
    main()
