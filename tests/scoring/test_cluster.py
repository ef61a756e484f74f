"""Scoring on a Ray cluster of two workers, one of which dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import HELPERS
from synthetic import make_patches

import shazam_fast as sf

pytest.importorskip("ray", reason="clusters need Ray")

DRIVER = """
import os, sys
from pathlib import Path
from clusters import kill_one, start_cluster
import shazam_fast as sf
from shazam_fast.scoring import engine as scorer
from shazam_fast.scoring import parts as score_parts
score_parts.PART_BYTES = 1 << 13
student, archive, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
sf.score(student, archive, folder / "local")
start_cluster()
killed = kill_one("score_part", folder / "ray", ".parquet")
scores = sf.score(student, archive, folder / "ray", cluster="ray")
print(len(killed), "killed;", len(scores), "scored")

os.chdir(folder)
part = Path("a/part-00000.safetensors")
content = bytearray(part.read_bytes())
content[4096 + 2 * 39 * 1000 : 4096 + 2 * 39 * 1000 + 2] = b"\\x00\\x7e"
part.write_bytes(content)
try:
    sf.score(student, "a", "nan", cluster="ray")
except sf.NonFiniteError as error:
    print(error)
"""


def test_one_of_two_workers_is_killed(trained, tmp_path):
    student, _ = trained
    student.save(tmp_path / "student")
    sf.write_archive(tmp_path / "a", **make_patches(rows=30_000))
    command = [sys.executable, "-c", DRIVER, tmp_path / "student", tmp_path / "a", tmp_path]
    environment = {**os.environ, "PYTHONPATH": HELPERS}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    killed, refused = run.stdout.splitlines()[-2:]  # Ray itself reports the dead worker
    assert killed == "1 killed; 30000 scored"
    assert refused.startswith("a: teacher 'uni', row 1000 (slide 'slide-040', ")
    assert refused.endswith(": the feature is nan; extract this patch again or leave it out")
    local, ray = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("local", "ray"))
    assert len(local) > 100
    assert local == ray


def test_what_a_cluster_needs(trained, tmp_path, monkeypatch):
    student, archive = trained
    with pytest.raises(sf.ShazamError, match="give out"):
        sf.score(student, archive, cluster="ray")
    with pytest.raises(sf.ShazamError, match="'ray' expected, found 'slurm'"):
        sf.score(student, archive, tmp_path / "out", cluster="slurm")
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(sf.ShazamError, match=r"RAY_ADDRESS expected .*found 'nowhere'"):
        sf.score(student, archive, tmp_path / "out", cluster="ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(sf.ShazamError, match=r"pip install 'shazam_fast\[cluster\]'"):
        sf.score(student, archive, Path(tmp_path) / "out", cluster="ray")
