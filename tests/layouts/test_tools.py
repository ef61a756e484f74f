"""Every tool's files through every door: open, convert, labels, splits, train, score, heatmap."""

from dataclasses import dataclass

import numpy as np
import pytest
import tools

import shazam_fast as sf

pytest.importorskip("h5py")
pytest.importorskip("zarr")


@dataclass(frozen=True)
class Tool:
    """What is to be seen of a tool's files.

    `side` is the patch size that the files say, `unit` that of positions; `named` tells whether slides are known, and
    `labelled` whether the files hold labels and splits of their own.
    """

    teachers: dict
    mapped: bool = True
    side: float | None = None
    unit: str | None = None
    positions: bool = True
    named: bool = True
    labelled: bool = False
    splits: bool = False


UNI = {"uni": 8}
LEVELS = {"uni:low": 8, "uni:mid": 6, "uni": 4}
TOOLS = {
    "trident": Tool({"uni_v1": 8}, side=512, unit="pixels"),
    "clam": Tool({"clam": 8}, side=512, unit="pixels"),
    "stamp": Tool({"uni2": 8}, side=128, unit="micrometres"),
    "atlaspatch": Tool({"uni": 8, "virchow2": 6}, side=512, unit="pixels"),
    "slide2vec": Tool({"virchow2": 8}, side=512, unit="pixels"),
    "slide2vec_npz": Tool({"virchow2": 8}, mapped=False, side=512, unit="pixels"),
    "shazam_tiles": Tool(LEVELS, positions=False, named=False, labelled=True),
    "shazam_slides": Tool(LEVELS, positions=False),
    "gpfm": Tool({"gpfm": 8}, positions=False, labelled=True),
    "eva": Tool(UNI, mapped=False, positions=False, labelled=True, splits=True),
    "lazyslide": Tool(UNI, mapped=False, side=512, unit="pixels"),
    "tiatoolbox": Tool({"stores": 8}, mapped=False),
    "thunder": Tool(UNI, mapped=False, positions=False, named=False, labelled=True, splits=True),
    "uni2": Tool({"uni2": 8}),
    "fusecpath": Tool(UNI, mapped=False, unit="pixels"),
    "torchmil": Tool({"UNI": 8}),
    "npy": Tool(UNI, positions=False),
    "native": Tool(UNI, side=512, unit="pixels"),
}


@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize("name", TOOLS)
def test_a_tools_files_through_every_door(tmp_path, name):
    tool, source = TOOLS[name], getattr(tools, name)(tmp_path / name)
    if tool.mapped:
        check(sf.open(source), tool)
    else:
        with pytest.raises(sf.ArchiveError, match=r"shazam_fast\.convert can read"):
            sf.open(source)
    out = tmp_path / "converted"
    sf.convert(source, out, dtype="float32")
    check(sf.open(out), tool)
    place = source if tool.mapped else out

    archive = with_tables(place, tool)
    result = sf.train(archive, epochs=1, batch_size=8, dim=8, depth=1)
    scores = sf.score(result.student, archive, out=tmp_path / "scores")
    assert scores.shares.shape == (archive.n_rows, len(tool.teachers))
    drawn = draw(tmp_path, scores)
    if not tool.positions or not tool.named or tool.unit == "micrometres":
        assert drawn is None, "nothing can be drawn without positions in pixels"


def check(archive, tool):
    assert archive.teachers == tool.teachers
    archive.verify()
    slides = [s for s in tools.SLIDES if tool.named or "d" in s or archive.n_rows != 36]
    if tool.named:
        assert archive.slides == tuple(tools.SLIDES)
        first = next(iter(tool.teachers))
        features = np.concatenate([tools.make(slide, tool.teachers[first]) for slide in slides])
        stored = archive.gather(np.arange(archive.n_rows))[:, archive.columns_of(first)]
        np.testing.assert_allclose(
            stored, features, atol=0.01 if archive.dtype == "float16" or tool.unit == "micrometres" else 0
        )
    if tool.positions:
        scale = 4 if tool.unit == "micrometres" else 1
        expected = np.concatenate([tools.corners(slide) for slide in tools.SLIDES]) / scale
        np.testing.assert_allclose(archive.coords, expected, atol=0.5 if scale > 1 else 0)
    else:
        assert (archive.coords == -1).all()
    geometry = [archive.geometry.get(slide, sf.Geometry()) for slide in tools.SLIDES]
    assert {one.patch_size for one in geometry} == {tool.side}
    assert {one.unit for one in geometry} == {tool.unit}
    assert (archive.labels >= 0).any() == tool.labelled


def with_tables(place, tool):
    """The archive with labels by slide and splits, or those that its files hold."""
    given = {}
    if tool.named and not tool.labelled:
        given["labels"] = tools.LABELS
    if not tool.splits:
        n_rows = sf.open(place).n_rows
        given["splits"] = tools.SPLITS if tool.named else np.array(["train", "val"])[np.arange(n_rows) * 2 // n_rows]
    archive = sf.open(place, **given)
    if tool.named and not tool.labelled:
        assert archive.classes == ("normal", "tumour")
        assert archive.labels.tolist() == [0] * 12 + [1] * 24 + [0]
    assert (archive.splits == 0).sum() > 0
    assert (archive.splits == 1).sum() > 0
    return archive


def draw(place, scores):
    """The files of the maps; None where they are refused."""
    try:
        sf.heatmap(scores, place / "maps")
    except sf.ShazamError:
        return None
    return sorted(place.glob("maps/*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("trident_slide", "one row per patch was expected"), ("trident_pt", r"(?s)pickle|torch\.save")],
)
def test_files_without_patch_tensors_are_refused(tmp_path, name, message):
    source = getattr(tools, name)(tmp_path / "source")
    with pytest.raises(sf.ArchiveError, match=message):
        sf.open(source)
    with pytest.raises(sf.ArchiveError, match=message):
        sf.convert(source, tmp_path / "out")
