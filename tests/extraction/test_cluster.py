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
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
from pictures import small_teachers
import shazam_fast as sf
from shazam_fast.extraction import plan as extraction_plan
extraction_plan.PART_ROWS = 5
teachers = small_teachers()[:1]
weights = {t.name: "random" for t in teachers}
try:
    sf.extract(sys.argv[1], teachers, sys.argv[2], weights=weights, workers=1, cluster="ray")
except sf.ImageError as error:
    assert "023.png: empty file" in str(error), error
    print("refused")
"""


def test_two_workers_write_parts_that_one_process_would_write(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    images, teachers = tmp_path / "images", small_teachers()[:1]
    write_patches(images, 24)[23].write_bytes(b"")
    command = [sys.executable, "-c", SCRIPT, images, tmp_path / "spread"]
    environment = {**os.environ, "PYTHONPATH": HELPERS}  # the workers' too
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
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
