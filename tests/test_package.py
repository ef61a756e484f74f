"""What must hold of the package as a whole."""

import inspect
import subprocess
import sys

import pytest
import torch

import shazam_fast as sf


def run(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_importing_is_light():
    loaded = run("import sys, shazam_fast; print([m for m in ('torch', 'numpy', 'sklearn') if m in sys.modules])")
    assert loaded == "[]\n"


def test_works_without_what_is_optional():
    """No triton, timm, scikit-image or matplotlib: training and scoring do not care."""
    script = """
import sys
for name in ("triton", "timm", "skimage", "matplotlib", "h5py"):
    sys.modules[name] = None
import numpy as np, tempfile
import shazam_fast as sf
rng = np.random.default_rng(0)
path = tempfile.mkdtemp() + "/a"
sf.write_archive(path, {"uni": rng.normal(size=(40, 8))}, labels=np.arange(40) % 2,
                 splits=np.repeat(["train", "val"], 20))
result = sf.train(path, epochs=1, batch_size=8, dim=8, depth=1)
print(len(sf.score(result.student, path).rows))
"""
    assert run(script) == "40\n"


@pytest.mark.parametrize("name", sorted(set(sf.__all__)))
def test_public_names_are_documented(name):
    thing = getattr(sf, name)
    assert thing.__doc__
    if inspect.isclass(thing):
        for method, function in inspect.getmembers(thing, inspect.isfunction):
            if not method.startswith("_") and function.__module__.startswith("shazam_fast"):
                assert function.__doc__, f"{name}.{method}"


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'fuse'"):
        sf.fuse  # noqa: B018 - looking it up is the test
    assert "train" in dir(sf)


def test_kernels_are_installed_inside_the_package():
    from shazam_fast.kernels import reference

    assert torch.equal(reference.mean_pool(torch.ones(1, 2, 3), None), torch.ones(1, 3))
