"""Archives between brackets, and as they show themselves."""

import numpy as np
import pytest
from synthetic import TEACHERS

import shazam_fast as sf
from shazam_fast.archive import archive as module


def test_rows(archive):
    everything = archive.gather(np.arange(300))
    for rows in (slice(None), slice(3, 50, 7), slice(-5, None), [4, 2, 2], np.array([7]), archive.labels == 1, []):
        expected = (
            everything[np.asarray(rows, dtype=int) if rows == [] else rows]
            if isinstance(rows, list)
            else everything[rows]
        )
        np.testing.assert_array_equal(archive[rows], expected)
    np.testing.assert_array_equal(archive[-1], everything[299])
    np.testing.assert_array_equal(archive[np.int64(5)], everything[5])


def test_teachers(archive, patches, monkeypatch):
    monkeypatch.setattr(module, "PICKED_ROWS", 64)
    for name in TEACHERS:
        whole = patches["features"][name]
        assert archive[name].dtype == np.float32
        np.testing.assert_allclose(archive[name], whole, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(archive[100:290, name], whole[100:290], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(archive[3, name], whole[3], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("conch", "no teacher 'conch'; it has uni"),
        (300, "row 300 of 300 rows"),
        (-301, "row -301 of 300 rows"),
        (np.ones(299, bool), "a mask of 300 booleans expected, one per row, found 299"),
        ([0.5], "whole numbers expected"),
    ],
)
def test_keys_that_do_not_fit(archive, key, message):
    with pytest.raises(sf.MismatchError, match=message):
        archive[key]


def test_an_archive_is_not_walked_patch_by_patch(archive):
    with pytest.raises(TypeError, match="not iterable"):
        iter(archive)


def test_archives_show_themselves(tmp_path):
    names = {f"<i>{n}</i>": np.ones((3, 4)) for n in range(9)}
    archive = sf.open(sf.write_archive(tmp_path / "a", names, labels=[0, 1, 1], classes=["a & b", "c"]))
    assert "and 3 more" in repr(archive)
    text = archive._repr_html_()
    assert "<i>" not in text
    assert "&lt;i&gt;8&lt;/i&gt;" in text
    assert "a &amp; b" in text
