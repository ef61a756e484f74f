"""What a first visit to a GPU must find out, most valuable first; every record is written as soon as it is there.

    PYTHONPATH=benchmarks python3 benchmarks/gpu_first.py FOLDER SECONDS

Appends one JSON line per record to FOLDER/records.jsonl; starts nothing after SECONDS. Without a GPU it takes a few
steps on the CPU, to show that it still runs.
"""

import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from bench_training import BATCH, DEVICE, GPU, STEPS, TEACHERS, AuthorsLoop, OurLoop, write_patches
from conftest import processor, versions
from profile_step import step_profile

import shazam_fast as sf
from shazam_fast.ops import dispatch as ops
from shazam_fast.scoring.engine import Scorer, to_scoring_form
from shazam_fast.training import feed

D = 128
TILE = 16384  # patches


class Visit:
    """The records of one visit, each with the device and the versions, and the time that is left."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.started, self.failed = out, time.monotonic(), False
        self.end = self.started + seconds
        self.facts = {"device": torch.cuda.get_device_name() if GPU else processor(), **versions()}

    def keep(self, **record):
        line = json.dumps({"at_s": round(time.monotonic() - self.started, 1), **record, **self.facts})
        print(line, flush=True)
        with (self.out / "records.jsonl").open("a") as file:
            file.write(line + "\n")

    def section(self, function, *arguments):
        """Run it unless the time is up; what it raises is a record too, and the next section has its turn."""
        options = [str(a) for a in arguments if not isinstance(a, sf.FeatureArchive)]
        name = " ".join([function.__name__, *options])
        if time.monotonic() > self.end:
            self.keep(section=name, skipped=True)
            return
        started = time.monotonic()
        try:
            function(self, *arguments)
        except Exception:
            self.failed = True
            self.keep(section=name, error=traceback.format_exc(limit=-6)[-3000:])
        self.keep(section=name, seconds=round(time.monotonic() - started, 1))


def median_seconds(function, rounds=7):
    """Median of a few rounds after two that are not counted."""
    found = []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        function()
        if GPU:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return float(np.median(found[2:]))


def make_student(archive):
    config = sf.StudentConfig(TEACHERS, archive.classes, dim=D)
    return sf.Student(config, torch.Generator().manual_seed(0)).eval()


def first_start(visit, archive):
    """From a student to the end of its first steps; with an empty cache of Triton, kernels are compiled."""
    started = time.perf_counter()
    OurLoop(archive, D, "bare").epoch(np.arange(archive.n_rows))
    visit.keep(time="first start", seconds=time.perf_counter() - started)


def after_epochs(archive, block, dropout, backend, plain, epochs):
    """Parameters and losses after steps from the same start; the last batch of an epoch is short."""
    present = None
    if dropout:
        present = np.random.default_rng(2).random((archive.n_rows, len(TEACHERS))) > 0.3
        present[:, 0] = True
    with ops.use(backend):
        loop = OurLoop(archive, D, block)
        for epoch in range(epochs):
            loop.epoch(np.random.default_rng(epoch).permutation(archive.n_rows), present, plain)
        return [*(p.detach() for p in loop.student.parameters()), loop.losses]


def steps_agree(visit, archive, block, dropout, steps):
    """Captured steps and plain ones after at least so many, and captured ones and the definition after an epoch."""
    epochs = -(-steps // -(-archive.n_rows // BATCH))
    case = {"block": block, "dropout": dropout}

    def apart(found, wanted):
        return [float((a - b).norm() / b.norm().clamp_min(1e-20)) for a, b in zip(found, wanted, strict=True)]

    graph, plain = (after_epochs(archive, block, dropout, "auto", plain, epochs) for plain in (False, True))
    holds = all(map(torch.equal, graph, plain))
    visit.keep(check="graph = plain bits", **case, steps=steps, holds=holds, apart=max(apart(graph, plain)))
    graph, definition = (
        after_epochs(archive, block, dropout, backend, backend == "reference", 1) for backend in ("auto", "reference")
    )
    *parameters, losses = apart(graph, definition)
    visit.keep(check="graph ~ definition", **case, losses_apart=losses, parameters_apart=max(parameters))


def streamed_agrees(visit, archive):
    order = np.arange(archive.n_rows)
    resident = OurLoop(archive, D, "bare")
    resident.epoch(order)
    share, feed.RESIDENT_SHARE = feed.RESIDENT_SHARE, 0.0
    try:
        streamed = OurLoop(archive, D, "bare")
        streamed.epoch(order)
        visit.keep(check="streamed = resident bits", holds=torch.equal(resident.losses, streamed.losses))
        us = 1e6 * median_seconds(lambda: streamed.epoch(order), 3) / len(streamed.losses)
        visit.keep(time="streamed step", us=us)
    finally:
        feed.RESIDENT_SHARE = share


def recommended_time(visit, archive):
    """What `sf.train` does by default, all included: the time of more epochs, over their steps."""
    epochs = (2, 22) if GPU else (1, 2)
    archive = sf.open(archive.path, splits=["val"] * BATCH + ["train"] * (archive.n_rows - BATCH))
    seconds = []
    for count in (epochs[0], *epochs):  # the first one compiles
        started = time.perf_counter()
        sf.train(archive, epochs=count, device=str(DEVICE))
        seconds.append(time.perf_counter() - started)
    steps = (epochs[1] - epochs[0]) * (archive.n_rows // BATCH - 1)
    us = 1e6 * (seconds[2] - seconds[1]) / steps
    visit.keep(time="step of the recommended recipe", us=us, seconds_at_first=seconds[0], seconds=seconds[2])


def step_time(visit, archive, block, dim, precision):
    order = np.random.default_rng(1).permutation(archive.n_rows)
    with ops.use("auto", precision):
        loop = OurLoop(archive, dim, block)
        us = 1e6 * median_seconds(lambda: loop.epoch(order), 5) / len(loop.losses)
    visit.keep(time="step", block=block, D=dim, precision=precision, us=us)


def step_kernels(visit, archive, block):
    """Time and number of the kernels of a step, by name."""
    rows = step_profile(OurLoop(archive, D, block), np.arange(archive.n_rows))
    us, kernels = sum(us for us, _, _ in rows), sum(count for _, count, _ in rows)
    top = [[round(us, 2), round(count, 1), name[:70]] for us, count, name in rows[:28]]
    visit.keep(profile=block, us_per_step=us, kernels_per_step=kernels, us_count_name=top)


def scores_agree(visit, archive):
    """The GPU against the C++ core, and rows that one NaN spoils."""
    student = make_student(archive)
    cpu, gpu = (sf.score(student, archive, device=str(d)) for d in ("cpu", DEVICE))
    apart = {name: float(np.abs(getattr(cpu, name) - getattr(gpu, name)).max()) for name in ("probabilities", "shares")}
    visit.keep(check="GPU ~ CPU scores", **apart)
    x = torch.from_numpy(archive.gather(np.arange(16))).to(DEVICE)
    x[6, 3] = float("nan")
    with torch.inference_mode():
        logits = to_scoring_form(student, DEVICE)(x).logits
    visit.keep(check="rows that a NaN in row 6 spoils", rows=(~logits.isfinite().all(1)).nonzero().flatten().tolist())


def copy_rates(visit, archive):
    """What bounds streamed scoring: gathering on the host, and the copy to the device."""
    n = min(archive.n_rows, TILE)
    host = torch.empty(n, archive.width, dtype=torch.float16, pin_memory=GPU)
    took = median_seconds(lambda: archive.gather(np.arange(n), out=host.numpy()))
    visit.keep(rate="host gather", gb_per_s=host.nbytes / took / 1e9)
    there = torch.empty(host.shape, dtype=host.dtype, device=DEVICE)
    took = median_seconds(lambda: there.copy_(host, non_blocking=True))
    visit.keep(rate="copy to the device", gb_per_s=host.nbytes / took / 1e9, patches_per_s=n / took)


def scoring_error(visit, archive):
    """Float16 features in two parts and float32 ones, against float64, relative."""
    x = torch.from_numpy(archive.gather(np.arange(min(archive.n_rows, 1024)))).half().to(DEVICE)
    student = make_student(archive)
    model = to_scoring_form(student, DEVICE)
    with torch.inference_mode():
        exact = student.double().fold().to(DEVICE)(x.double())
        for features in (x, x.float()):
            found = model(features)
            errors = {
                name: float((getattr(found, name) - getattr(exact, name)).norm() / getattr(exact, name).norm())
                for name in ("logits", "shares")
            }
            visit.keep(check="scoring ~ float64", features=str(features.dtype), **errors)


def resident_scoring(visit, archive, precision):
    """Features that are there: float16 ones in two parts where the precision is "ieee", float32 ones as they are."""
    n = min(archive.n_rows, TILE)
    x = torch.from_numpy(archive.gather(np.arange(n))).to(DEVICE)
    model = to_scoring_form(make_student(archive), DEVICE)
    with ops.use("auto", precision), torch.inference_mode():
        for features in (x.half(), x) if GPU else (x,):
            took = median_seconds(lambda features=features: model(features))
            visit.keep(rate="resident", precision=precision, features=str(features.dtype), patches_per_s=n / took)


def streamed_scoring(visit, archive):
    student, rows = make_student(archive), np.arange(archive.n_rows)
    with Scorer(student, archive, DEVICE, fused=False, allow_missing_teachers=False) as scorer:
        took = median_seconds(lambda: scorer.score(rows), 3)
    visit.keep(rate="streamed", rows=len(rows), patches_per_s=len(rows) / took)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        sf.score(student, archive, Path(folder) / "scores", device=str(DEVICE))
        visit.keep(rate="to disk", rows=len(rows), patches_per_s=len(rows) / (time.perf_counter() - started))


def authors_time(visit, archive, compiled):
    loop, order = AuthorsLoop(archive, D, False, compiled), np.random.default_rng(1).permutation(archive.n_rows)
    us = 1e6 * median_seconds(lambda: loop.epoch(order), 3) / (len(order) // BATCH)
    visit.keep(time="compiled authors" if compiled else "authors", us=us)


def main() -> bool:
    """Whether all sections ran without an error."""
    visit = Visit(Path(sys.argv[1]), float(sys.argv[2]))
    visit.keep(cores=os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        small = write_patches(Path(folder), BATCH * (31 if GPU else 2) + BATCH // 4)
        visit.section(first_start, small)
        visit.section(steps_agree, small, "bare", False, 1000 if GPU else 3)
        large = write_patches(Path(folder), BATCH * STEPS)
        visit.section(step_time, large, "bare", D, "ieee")
        visit.section(step_kernels, large, "bare")
        visit.section(recommended_time, large)
        visit.section(scores_agree, small)
        visit.section(scoring_error, small)
        visit.section(copy_rates, large)
        visit.section(resident_scoring, large, "ieee")
        visit.section(steps_agree, small, "bare", True, 1)
        visit.section(steps_agree, small, "residual", True, 1)
        visit.section(streamed_agrees, small)
        visit.section(streamed_scoring, write_patches(Path(folder), 131_072) if GPU else large)
        visit.section(step_time, large, "residual", D, "ieee")
        visit.section(step_kernels, large, "residual")
        visit.section(authors_time, large, False)
        for precision in ("tf32", "bf16") if GPU else ():
            visit.section(step_time, large, "bare", D, precision)
            visit.section(resident_scoring, large, precision)
        for dim in (256, 512) if GPU else ():
            visit.section(step_time, large, "bare", dim, "ieee")
        if GPU:
            visit.section(authors_time, large, True)  # last: compiling it may take a minute
    return not visit.failed


if __name__ == "__main__":
    sys.exit(not main())
