"""Everything that Python can hand to the core: a result or an error, never a crash."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzzing import EXAMPLES

from shazam_fast import _core

CALLS = 30 * EXAMPLES


@pytest.mark.parametrize("seed", range(2))
def test_arguments_of_any_kind(tmp_path, seed):
    script = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, "-X", "faulthandler", script, str(tmp_path), str(seed), str(CALLS // 2)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    passed, refused = map(int, done.stdout.split())
    assert min(passed, refused) > CALLS // 20  # both were met


def ones(*shape):
    return np.ones(shape, np.float32)


def make_student(dims, D, score_maps, *optional):
    weights = ones(sum(dims), D), ones(len(dims), D), score_maps
    return _core.FoldedStudent(dims, *weights, ones(D, D), ones(D), ones(D, 2), ones(2), *optional)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: make_student([3], 0, ones(0, 0)), "head_weight_2: expected a width from 1"),
        (lambda: make_student([0], 4, ones(4, 4)), "dims: expected a width from 1"),
        (lambda: make_student([3], 4, ones(4, 3)), r"score_maps: expected \[D, K \* D\]"),
        (lambda: make_student([3], 4, ones(4, 4), ones(4)), "shift: expected a shape"),
        (lambda: make_student([3], 4, ones(4, 4), None, ones(1, 4, 3), ones(1, 2)), "vote_weight: expected a shape"),
        (lambda: make_student([3], 4, ones(4, 4), None, ones(1, 4, 2), ones(2)), "vote_bias: expected a shape"),
        (lambda: make_student([3], 4, ones(4, 4), None, ones(1, 4, 2)), "vote_bias: expected given exactly with"),
        (lambda: make_student([], 4, ones(4, 4)), "teachers: expected from 1 to 32"),
        (lambda: _core.folded_scores(ones(5, 3, 0), ones(5, 3, 0), None, ones(5, 0), ones(5, 3)), "tokens: expected"),
        (lambda: _core.attention_forward(ones(6, 0), None, ones(2, 3, 3), ones(2, 3, 0)), "tokens: expected a width"),
    ],
)
def test_sizes_that_no_student_has(make, match):
    with pytest.raises(_core.StoreError, match=match) as info:
        make()
    assert info.value.kind == "bounds"


def test_arrays_that_are_not_aligned_are_refused():
    memory = np.zeros(4 * 5 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(5, 4)
    with pytest.raises(_core.StoreError, match="pooled: expected values at multiples of 4 bytes") as info:
        _core.folded_scores(ones(5, 3, 4), ones(5, 3, 4), None, memory, ones(5, 3))
    assert info.value.kind == "dtype"


def test_an_absent_teacher_may_be_wider_than_the_features():
    core = make_student([3, 50], 4, ones(4, 4))
    logits = ones(5, 2)
    core.forward(ones(5, 3), [0, -1], logits, ones(5, 2), ones(5, 4))
    assert np.isfinite(logits).all()


def test_paths_of_any_kind(tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/\xff\xe4")  # not UTF-8
    extents = np.array([[0, 0, 1, 8]])
    store = _core.FeatureStore(2, "float32", [name], extents)
    with pytest.raises(_core.StoreError, match="no such file") as info:
        store.check_finite(0, 1)
    assert name in str(info.value)
    np.ones(2, np.float32).tofile(name)
    for path in (name, os.fsencode(name), Path(name)):
        assert _core.FeatureStore(2, "float32", [path], extents).check_finite(0, 1) == -1
    with pytest.raises(ValueError, match="null"):
        _core.FeatureStore(2, "float32", ["a\0b"], extents)
