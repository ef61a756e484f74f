import os
from importlib.util import find_spec
from pathlib import Path

# Processes that run tests side by side (pytest -n) share the cores: set before NumPy and PyTorch start their threads.
SIDE_BY_SIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if SIDE_BY_SIDE > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // SIDE_BY_SIDE)))

import numpy as np
import pytest
import torch
from synthetic import make_patches

import shazam_fast as sf

os.environ["SHAZAM_CACHE"] = "off"  # tests leave nothing in the user's cache folder
os.environ["PYTHONSAFEPATH"] = "1"  # processes that tests start take the installed package, not the source folder
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def scalars_are_indices():
    """For Triton before 3.9: its interpreter has scalars as arrays of one value, which numpy 2.5 takes for no index."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_with_index


if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    scalars_are_indices()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n, a process keeps the tests of a module, whose fixtures are then made once, mostly."""
    from xdist.scheduler import WorkStealingScheduling  # not by addopts: --dist turns pytest-benchmark off

    return WorkStealingScheduling(config, log)


REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def patches():
    return make_patches()


@pytest.fixture
def archive(tmp_path, patches):
    return sf.open(sf.write_archive(tmp_path / "patches.archive", **patches))


def real_patches():
    """Real features on oral histology; see DESIGN for where they come from."""
    source = REAL_DATA / "oscc.npz"
    if not source.exists():
        pytest.skip(f"real features not found: {source}")
    content = np.load(source)
    return {
        "features": {str(name): content[f"feat_{name}"] for name in content["teachers"]},
        "labels": content["labels"],
        "splits": content["split"],
        "groups": content["group"],
        "classes": [str(name) for name in content["class_names"]],
    }


@pytest.fixture
def small_maps(monkeypatch):
    """Maps of slides with few pixels, for tests of other things: a page in full size takes half a second."""
    monkeypatch.setattr("shazam_fast.reporting.slide_scores.LONG_SIDE", 90)


@pytest.fixture(scope="session")
def real_archive(tmp_path_factory):
    return sf.open(sf.write_archive(tmp_path_factory.mktemp("real") / "oscc.archive", **real_patches()))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A small bare student trained with teacher dropout, and its archive."""
    archive = sf.open(sf.write_archive(tmp_path_factory.mktemp("trained") / "a.archive", **make_patches()))
    result = sf.train(archive, epochs=6, batch_size=16, dim=32, depth=3, teacher_dropout=0.3)
    return result.student, archive
