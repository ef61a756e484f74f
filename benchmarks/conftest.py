"""What all benchmarks share: quick mode, facts about the machine in every record, ratios after the run."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections import defaultdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch

from shazam_fast.runtime.products import product

KEPT_STATS = ("min", "max", "mean", "stddev", "median", "iqr", "rounds", "iterations")

os.environ["PYTHONSAFEPATH"] = "1"  # processes that benchmarks start take the installed package, not the source folder


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="fewer and smaller cases, under a minute per file")
    parser.addoption("--records", type=Path, help="file to which each record is appended as soon as it is measured")


def processor():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    return f"{model}, {torch.get_num_threads()} threads"


@cache
def versions():
    """What a figure depends on beside the device: versions of the interpreter, the packages and the driver."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    try:
        found["triton"] = version("triton")
    except PackageNotFoundError:
        found["triton"] = None
    if torch.cuda.is_available():
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return found


def median_seconds(function, rounds=9):
    seconds = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


@pytest.fixture(scope="session")
def ceilings():
    """Rates of this machine: bytes read and written by a large copy, FLOPs of a large float32 matrix product."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 1536
    x, y = torch.randn(2, size, size, device=device)
    source = torch.randn(2**28 if device == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / median_seconds(lambda: target.copy_(source))
    return {"bytes_per_s": copied, "flops_per_s": 2 * size**3 / median_seconds(lambda: matrix_product(x, y))}


def matrix_product(x, y):
    """x @ y as fast as this machine's libraries have it, see runtime/products.py."""
    return torch.mm(x, y) if x.is_cuda else product(x, y)


def describe(benchmark, ceilings, device, **facts):
    """Put into the record what was measured and where."""
    if ceilings is not None:
        floor = max(facts["bytes"] / ceilings["bytes_per_s"], facts["flops"] / ceilings["flops_per_s"])
        benchmark.extra_info.update(floor_s=floor, **ceilings)
    on_gpu = torch.cuda.is_available() and device != "cpu"
    name = torch.cuda.get_device_name() if on_gpu else processor()
    benchmark.extra_info.update(device=name, **versions(), **facts)


@pytest.fixture
def measure(benchmark, request):
    """Time what one provider does in one case; the median is compared with that of the case's baseline provider."""

    def run(
        case, provider, function, *, rows, nbytes, baseline=None, flops=0, rounds=30, warmup=5, setup=None,
        ceilings=None, device=None, **facts,
    ):  # fmt: skip
        """`ceilings` of bytes and FLOPs per second: the record then says which share of them was reached.

        `device` is "cpu" or "cuda", where the work is done; None: on the GPU if there is one. `facts` are recorded as
        they are.
        """
        benchmark.group = case
        facts = {"provider": provider, "baseline": baseline, "rows": rows, "flops": flops, "bytes": nbytes, **facts}
        describe(benchmark, ceilings, device, **facts)
        warmup = 0 if setup is not None else min(warmup, rounds)
        result = benchmark.pedantic(function, rounds=rounds, iterations=1, warmup_rounds=warmup, setup=setup)
        if records := request.config.getoption("--records"):
            record = {"group": case, "median_s": benchmark.stats.stats.median, **benchmark.extra_info}
            with records.open("a") as file:
                file.write(json.dumps(record) + "\n")
        return result

    return run


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    cases = defaultdict(dict)
    for record in session.benchmarks if session else []:
        if record.extra_info and record.stats.rounds:
            cases[record.group][record.extra_info["provider"]] = record
    for case, providers in cases.items():
        terminalreporter.write_sep("-", case)
        for provider, record in providers.items():
            median, info = record.stats.median, record.extra_info
            line = f"{provider:>12}  {median * 1e3:10.2f} ms  {info['rows'] / median:14,.0f} rows/s"
            line += f"  {info['bytes'] / median / 1e9:7.2f} GB/s" if info["bytes"] else ""
            line += f"  {info['flops'] / median / 1e9:7.1f} GFLOP/s" if info["flops"] else ""
            line += f"  {median / info['steps'] * 1e6:,.0f} us/step" if "steps" in info else ""
            line += f"  {info['memory_mb']:,.0f} MB" if "memory_mb" in info else ""
            line += f"  {info['floor_s'] / median:5.0%} of the ceiling" if "floor_s" in info else ""
            baseline = providers.get(info["baseline"])
            if baseline and baseline is not record:
                line += f"  {baseline.stats.median / median:.2f}x {info['baseline']}"
            terminalreporter.write_line(line)
            if "in words" in info:
                terminalreporter.write_line(info["in words"])


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keep medians and spreads: single timings would make the files large, a host's name is nobody's business."""
    for record in output_json["benchmarks"]:
        for key in ("fullname", "params", "param", "options"):
            record.pop(key, None)
        record["stats"] = {key: record["stats"][key] for key in KEPT_STATS}
    for key in ("node", "cpu"):
        output_json["machine_info"].pop(key, None)
