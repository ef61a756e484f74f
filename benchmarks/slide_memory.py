"""The most memory that scoring or training slides takes beyond what the process had before, by the slides' size.

    python benchmarks/slide_memory.py scoring 100000

Six slides of so many patches, with 1,024 float16 columns, lie as one file of zeros without blocks on the disk. Training
reads packs of 4 slides with at most 1,024 patches each; validation and test, and scoring, read all patches. Counted is
anonymous memory, which no file backs, in MB, by a thread that looks every few milliseconds. What is kept of each patch
counts as well: its row, position and slide, and in scoring the table that is given back.
"""

import argparse
import os
import re
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import torch

import shazam_fast as sf
from shazam_fast.slides.options import SlideConfig
from shazam_fast.slides.students import SlideStudent, build_model

COLUMNS, SLIDES, D = 1024, 6, 128
OPTIONS = {"folds": 3, "epochs": 1, "batch_size": 4, "patches": 1024, "dim": D, "device": "cpu"}


def anonymous():
    """Megabytes of anonymous memory of this process."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024


class Peak:
    """The most anonymous memory while the context lasts, in MB beyond what there was."""

    def __enter__(self):
        self._before = self.found = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.wait(0.003):
            self.found = max(self.found, anonymous())

    def __exit__(self, *raised):
        self._done.set()
        self._thread.join()
        self.found -= self._before


def write_slides(folder, patches):
    """A folder with one file per slide, all the same file."""
    first = folder / "s0.npy"
    np.lib.format.open_memmap(first, mode="w+", dtype=np.float16, shape=(patches, COLUMNS)).flush()
    for slide in range(1, SLIDES):
        os.link(first, folder / f"s{slide}.npy")


def run(task, model, archive):
    """Score or train all slides."""
    if task == "training":
        labels = {name: "ab"[i % 2] for i, name in enumerate(archive.slides)}
        sf.slides.train(archive, labels, model=model, **OPTIONS)
        return
    config = SlideConfig(archive.teachers, "classification", ("a", "b"), model, D)
    sf.slides.score(SlideStudent(config, [build_model(config)]).eval(), archive, device="cpu")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("scoring", "training"))
    parser.add_argument("patches", type=int, help="of each slide")
    parser.add_argument("--model", default="gated_abmil")
    asked = parser.parse_args()
    for size in (100, asked.patches):  # what is loaded or compiled on first use is not counted
        with tempfile.TemporaryDirectory() as name:
            write_slides(Path(name), size)
            archive = sf.open({"uni": Path(name)})
            torch.manual_seed(0)
            with Peak() as peak:
                run(asked.task, asked.model, archive)
    sys.stdout.write(f"{peak.found:.1f}\n")


if __name__ == "__main__":
    main()
