"""The geometry of slides, written into native archives and read back."""

import json

import numpy as np
import pytest

import shazam_fast as sf


def test_geometry_survives_writing_and_opening(tmp_path):
    given = {
        "s1": sf.Geometry("pixels", 512, level=1, mpp=0.25, reader="openslide 4.0.0"),
        "s2": sf.Geometry("pixels", 256.5),
        "s3": sf.Geometry(),
    }
    features = {"uni": np.ones((3, 2))}
    sf.write_archive(tmp_path / "a", features, slides=["s1", "s2", "s3"], geometry=given)
    assert sf.open(tmp_path / "a").geometry == {"s1": given["s1"], "s2": given["s2"]}
    assert sf.open(tmp_path / "a").geometry["s1"].level == 1
    sf.write_archive(tmp_path / "b", features, slides=["s1", "s2", "s3"])
    assert sf.open(tmp_path / "b").geometry == {}


@pytest.mark.parametrize(
    "damage", [[], {"s1": 3}, {"s1": {"unit": "miles"}}, {"s1": {"patch_size": -1}}, {"s1": {"level": "x"}}]
)
def test_damaged_geometry_is_refused(tmp_path, damage):
    sf.write_archive(tmp_path / "a", {"uni": np.ones((3, 2))}, slides=["s1"] * 3)
    file = tmp_path / "a" / "archive.json"
    content = json.loads(file.read_text()) | {"geometry": damage}
    del content["document_xxh3"]
    file.write_text(json.dumps(content))
    with pytest.raises(sf.ArchiveError, match=r"archive\.json.*corrupt"):
        sf.open(tmp_path / "a")


@pytest.mark.parametrize("unit", ["furlong", "mm", "", 3])
def test_units_that_are_not_known_are_errors(tmp_path, unit):
    h5py = pytest.importorskip("h5py")
    for name, told in (("a", "um"), ("b", unit)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["feats"], file["coords"] = np.ones((3, 2), np.float16), np.zeros((3, 2), np.float32)
            file.attrs.update(unit=told, tile_size_um=256.0)
    with pytest.raises(sf.ArchiveError, match=r"b\.h5: attributes of the coordinates: unit .* is not known; 'um'"):
        sf.open(tmp_path)
    assert sf.open(tmp_path, on_error="skip").geometry == {"a": sf.Geometry("micrometres", 256.0)}


@pytest.mark.parametrize(
    ("unit", "known"),
    [("px", "pixels"), ("Pixels", "pixels"), ("\u00b5m", "micrometres"), ("micrometers", "micrometres")],
)
def test_units_in_other_words(tmp_path, unit, known):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["feats"], file["coords"] = np.ones((3, 2), np.float16), np.zeros((3, 2), np.float32)
        file.attrs["unit"] = unit
    assert sf.open(tmp_path / "a.h5").geometry[""].unit == known


def test_levels_and_slides_that_are_none(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = np.ones((3, 2), np.float32), np.zeros((3, 2), np.int64)
        file["coords"].attrs.update(patch_level=1.5, patch_size_level0=256)
    with pytest.raises(sf.ArchiveError, match=r"a\.h5: .*patch_level is 1\.5, a whole number was expected"):
        sf.open(tmp_path / "a.h5")
    with pytest.raises(sf.MismatchError, match="geometry: no patch is of slide 's2'; slides are 's1'"):
        sf.write_archive(tmp_path / "b", {"u": np.ones((1, 2))}, slides=["s1"], geometry={"s2": sf.Geometry("pixels")})
    assert not (tmp_path / "b").exists()
