"""Every example in the package's docstrings runs and prints what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

import shazam_fast

ROOT = Path(shazam_fast.__file__).parent
MODULES = sorted(
    ".".join(("shazam_fast", *file.relative_to(ROOT).with_suffix("").parts))
    for file in ROOT.rglob("*.py")
    if ">>> " in file.read_text()
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert failed == 0
    assert tried > 0
