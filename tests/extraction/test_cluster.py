"""Extraction over a local Ray cluster of two workers."""

import os
import subprocess
import sys

import numpy as np
import pytest
from pictures import HELPERS, small_teachers, write_patches

import shazam_fast as sf
from shazam_fast.extraction import plan as extraction_plan

SCRIPT = """
import sys
from clusters import start_cluster
from pictures import small_teachers
import shazam_fast as sf
from shazam_fast.extraction import plan as extraction_plan
extraction_plan.PART_ROWS = 5
start_cluster()
teachers = small_teachers()[:1]
weights = {t.name: "random" for t in teachers}
try:
    sf.extract(sys.argv[1], teachers, sys.argv[2], weights=weights, workers=1, cluster="ray")
except sf.ImageError as error:
    assert "023.png: empty file" in str(error), error
    print("refused")
"""

KILLED = """
import sys
from pathlib import Path
import torch
from clusters import kill_one, start_cluster
from pictures import small_teachers
import shazam_fast as sf
from shazam_fast.extraction import plan as extraction_plan
extraction_plan.PART_ROWS = 2
torch.set_num_threads(1)  # as Ray gives its workers one core each; sums depend on it
folder, teachers = Path(sys.argv[2]), small_teachers()[:1]
options = {"weights": {"plain": "random"}, "workers": 1, "device": "cpu"}

start_cluster()
killed = kill_one("Worker.write", folder / "spread", ".safetensors")
report = sf.extract(sys.argv[1], teachers, folder / "spread", cluster="ray", **options)
sf.extract(sys.argv[1], teachers, folder / "here", **options)
print(len(killed), "killed;", report.n_rows, "extracted")
"""


def run_script(script, images, folder):
    command = [sys.executable, "-c", script, images, folder]
    environment = {**os.environ, "PYTHONPATH": HELPERS}  # the workers' too
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def test_one_of_two_workers_is_killed(tmp_path):
    pytest.importorskip("ray", reason="clusters need Ray")
    write_patches(tmp_path / "images", 120)
    run = run_script(KILLED, tmp_path / "images", tmp_path)
    assert "1 killed; 120 extracted" in run.stdout.splitlines(), run.stderr  # Ray reports the dead worker there too
    spread, here = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("spread", "here"))
    assert len(here) == 60 + 2, "parts, the images and the manifest"
    assert spread == here


def test_two_workers_write_parts_that_one_process_would_write(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="clusters need Ray")
    images, teachers = tmp_path / "images", small_teachers()[:1]
    write_patches(images, 24)[23].write_bytes(b"")
    run = run_script(SCRIPT, images, tmp_path / "spread")
    assert "refused" in run.stdout, run.stderr
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "spread").glob("part-*.safetensors")}
    assert written
    monkeypatch.setattr(extraction_plan, "PART_ROWS", 5)
    options = {"weights": {"plain": "random"}, "device": "cpu", "unreadable": "exclude"}
    for out in ("spread", "here"):
        assert sf.extract(images, teachers, tmp_path / out, **options).n_rows == 23
    assert all(part.stat().st_mtime_ns == then for part, then in written.items()), "finished parts are kept"
    spread, here = sf.open(tmp_path / "spread"), sf.open(tmp_path / "here")
    spread.verify()
    np.testing.assert_allclose(spread.gather(range(23)), here.gather(range(23)), rtol=2e-3, atol=2e-3)


def test_ray_is_not_installed(tmp_path, monkeypatch):
    write_patches(tmp_path / "images", 1)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(sf.ShazamError, match=r"shazam_fast\[cluster\]"):
        sf.extract(tmp_path / "images", small_teachers(), tmp_path / "a", cluster="ray")
