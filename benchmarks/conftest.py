"""What all benchmarks share: quick mode, facts about the machine in every record, ratios after the run."""

import platform
from collections import defaultdict

import numpy as np
import pytest
import torch

BASELINE = "authors"  # every other provider's median is compared with this one's


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="fewer and smaller cases, under a minute a file")


def processor():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    return f"{model}, {torch.get_num_threads()} threads"


@pytest.fixture
def measure(benchmark):
    """Time a function of one provider in one case: `measure(case, provider, function, rows=, flops=, nbytes=)`."""

    def run(case, provider, function, *, rows, flops, nbytes, rounds=30):
        benchmark.group = case
        benchmark.extra_info.update(
            provider=provider,
            rows=rows,
            flops=flops,
            bytes=nbytes,
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
            python=platform.python_version(),
            torch=torch.__version__,
            numpy=np.__version__,
        )
        return benchmark.pedantic(function, rounds=rounds, iterations=1, warmup_rounds=5)

    return run


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    cases = defaultdict(dict)
    for record in session.benchmarks if session else []:
        if record.extra_info and record.stats.rounds:
            cases[record.group][record.extra_info["provider"]] = record
    for case, providers in cases.items():
        terminalreporter.write_sep("-", case)
        baseline = providers.get(BASELINE)
        for provider, record in providers.items():
            median, info = record.stats.median, record.extra_info
            line = f"{provider:>12}  {median * 1e3:8.2f} ms  {info['rows'] / median:12,.0f} patches/s"
            line += f"  {info['flops'] / median / 1e9:7.1f} GFLOP/s  {info['bytes'] / median / 1e9:6.2f} GB/s"
            if baseline and provider != BASELINE:
                line += f"  {baseline.stats.median / median:.2f}x {BASELINE}"
            terminalreporter.write_line(line)
