"""The report as a file: its sections, that names stay names, that nothing is fetched, that bytes repeat."""

import json
import logging
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from htmlpages import Seen
from program import call
from synthetic import make_patches

import shazam_fast as sf

pytest.importorskip("matplotlib", reason="reports need matplotlib (extra: report)")

QUICK = {"epochs": 3, "batch_size": 16, "dim": 16, "depth": 2, "device": "cpu", "preset": "huncrc"}
NASTY = (
    "<script>alert(1)</script>",
    "</svg></style><img src=x onerror=alert(1)>",
    'a" onload="alert(1)',
    "$x_1$ & <b>",
    "all",
)
EVERYTHING = [
    "summary", "comparison", "metrics", "curves", "shares", "redundancy", "rescue", "confounding", "hardest",
    "training", "about",
]  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    archive = sf.open(sf.write_archive(folder / "patches.archive", **make_patches()))
    result = sf.train(archive, out=folder / "student", **QUICK)
    found = sf.compare(archive, ["best_single_balanced", "lr_concat_balanced", "knn"], repeats=2)
    return archive, result, found, folder


def write(planted, tmp_path, **options):
    archive, result, found, _ = planted
    options = {"comparison": found, "device": "cpu", **options}
    return sf.report(result, archive, tmp_path / "report.html", **options).read_text(encoding="utf-8")


def test_all_sections_of_what_is_known(planted, tmp_path):
    seen = Seen(write(planted, tmp_path))
    assert seen.sections == EVERYTHING
    assert not seen.open
    assert "does not measure how useful" in seen.text
    assert "What this report leaves out" not in seen.text
    for name in (*planted[0].teachers, *planted[0].classes):
        assert name in seen.text


def test_the_numbers_are_those_of_evaluate(planted, tmp_path):
    archive, result, *_ = planted
    seen = Seen(write(planted, tmp_path))
    metrics = result.metrics["test"]
    for value in (metrics.balanced_accuracy, metrics.weighted_f1, metrics.auroc, metrics.calibration_error):
        assert f"{value:.3f}" in seen.text
    assert f"n = {len(archive.split('test'))}" in seen.text


def test_a_report_without_archive_says_what_is_missing(planted, tmp_path):
    _, result, *_, folder = planted
    out = sf.report(folder / "student", out=tmp_path / "r.html", device="cpu")
    seen = Seen(out.read_text())
    assert seen.sections == ["summary", "training", "about", "left-out"]
    assert "no archive was given" in seen.text
    assert len(result.history) == 3


def test_a_report_of_an_ensemble(planted, tmp_path):
    archive, result, *_ = planted
    ensemble = sf.average([result.student, result.student])
    seen = Seen(sf.report(ensemble, archive, tmp_path / "r.html", device="cpu").read_text())
    assert set(EVERYTHING) - set(seen.sections) == {"comparison", "training"}
    assert "the student is an ensemble" in seen.text
    assert f"{result.metrics['test'].balanced_accuracy:.3f}" in seen.text


def test_a_report_of_a_comparison_alone(planted, tmp_path):
    archive, *_ = planted
    found = sf.compare(archive, ["best_single_balanced", "knn"], repeats=2, out=tmp_path / "found")
    (tmp_path / "found.json").write_text(json.dumps(found.to_dict()))
    given = (found, tmp_path / "found", tmp_path / "found" / "comparison.json", tmp_path / "found.json")
    pages = {sf.report(comparison=one, out=tmp_path / "r.html").read_text() for one in given}
    assert len(pages) == 1
    seen = Seen(pages.pop())
    assert seen.sections == ["summary", "comparison", "left-out"]
    assert found.conclusion().replace(" -", " \u2212") in seen.text
    for i in (*found.balanced_accuracy.values(), *found.weighted_f1.values()):
        assert f"{i.value:.3f} {i.low:.3f} to {i.high:.3f}" in seen.text


def test_a_report_of_a_study(planted, tmp_path):
    found = sf.compare(planted[0], study="leave-one-out", methods=["lr_concat_balanced"], repeats=2)
    seen = Seen(sf.report(comparison=found, out=tmp_path / "r.html").read_text())
    assert "Comparison of settings: leave-one-out" in seen.text
    assert f"difference to {next(iter(found.against))}" in seen.text
    assert [name for name in found.balanced_accuracy if name not in seen.text] == []


def test_sections_that_the_archive_does_not_allow(tmp_path):
    content = make_patches(200, {"uni": 6})
    del content["slides"], content["groups"], content["coords"]
    archive = sf.open(sf.write_archive(tmp_path / "a", **content))
    result = sf.train(archive, **{**QUICK, "preset": None}, block="residual")
    seen = Seen(sf.report(result, archive, tmp_path / "r.html", device="cpu").read_text())
    assert set(EVERYTHING) - set(seen.sections) == {"comparison", "shares", "redundancy", "rescue", "confounding"}
    for reason in ("block='residual'", "one teacher", "no slide, patient, site or magnification is known"):
        assert reason in seen.text
    assert "resampled one by one" in seen.text  # a warning


def test_an_archive_without_labels(planted, tmp_path):
    content = make_patches()
    del content["labels"], content["classes"]
    archive = sf.open(sf.write_archive(tmp_path / "a", **content))
    seen = Seen(sf.report(planted[1].student, archive, tmp_path / "r.html", device="cpu").read_text())
    assert seen.sections == ["summary", "shares", "redundancy", "confounding", "training", "about", "left-out"]
    assert "no patch of 'test' has a label" in seen.text


def nasty_patches():
    content = make_patches(240, dict.fromkeys(NASTY[:3], 5), NASTY)
    content["slides"] = [f"{NASTY[i // 30 % 4]}-{i // 30}" for i in range(240)]
    return content


def test_names_are_never_markup(tmp_path, caplog):
    archive = sf.open(sf.write_archive(tmp_path / "<i>a", **nasty_patches()))
    result = sf.train(archive, **QUICK)
    found = sf.compare(archive, ["best_single_balanced", "knn"], repeats=2, val=0.25, test=0.25)
    with caplog.at_level(logging.ERROR):
        seen = Seen(sf.report(result, archive, tmp_path / "r.html", comparison=found, device="cpu").read_text())
    assert not seen.tags & {"script", "img", "i", "b", "iframe", "object", "foreignobject"}
    assert not [a for a in seen.attributes if a[1].startswith("on")]
    for name in NASTY:
        assert name in "".join(seen.texts)
    assert not seen.open


def test_nothing_is_fetched(planted, tmp_path):
    page = write(planted, tmp_path)
    seen = Seen(page)
    for tag, name, value in seen.attributes:
        if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert value.startswith(("#", "data:")), (tag, name, value)
        if name != "xmlns" and not name.startswith("xmlns:"):
            assert "//" not in value, (tag, name, value)
    assert set(re.findall(r"https?://[^\s\"'<>]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in page
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", page))
    assert "default-src 'none'" in page


def test_ids_are_unique_and_references_end_somewhere(planted, tmp_path):
    seen = Seen(write(planted, tmp_path))
    ids = [value for _, name, value in seen.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    for _, name, value in seen.attributes:
        for target in re.findall(r"url\(#([^)]*)\)", value) + (
            [value[1:]] if name == "href" and value[0] == "#" else []
        ):
            assert target in ids


def test_the_same_seed_gives_the_same_bytes(planted, tmp_path):
    first, again, other = (write(planted, tmp_path, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_hardest_patches_and_their_images(tmp_path):
    from PIL import Image

    content = make_patches(120)
    archive = sf.open(sf.write_archive(tmp_path / "a", **content))
    paths = [tmp_path / f"{row}.png" for row in range(120)]
    for row, path in enumerate(paths[:-1]):  # the last is missing
        Image.new("RGB", (300, 300), (row, 0, 0)).save(path)
    columns = {"row": np.arange(120), "path": pa.array([str(path) for path in paths]).dictionary_encode()}
    pq.write_table(pa.table(columns), archive.path / "images.parquet")
    result = sf.train(archive, **QUICK)
    seen = Seen(sf.report(result, archive, tmp_path / "r.html", device="cpu").read_text())
    images = [value for tag, name, value in seen.attributes if (tag, name) == ("img", "src")]
    assert 0 < len(images) <= 8  # two slides, four patches each
    assert all(value.startswith("data:image/jpeg;base64,") for value in images)

    rows = archive.split("test")
    scores = sf.score(result.student, archive, split="test", device="cpu")
    worst = int(rows[scores.probabilities[np.arange(len(rows)), archive.labels[rows]].argmin()])
    assert f"row {worst}" in seen.text


def test_images_of_patches_of_slides_are_read_from_the_slide(tmp_path, monkeypatch):
    from PIL import Image

    from shazam_fast.images.slide_reader import SlideReader
    from shazam_fast.reporting.report import hardest

    archive = sf.open(sf.write_archive(tmp_path / "a", **make_patches(120)))
    columns = {"row": np.arange(120), "path": pa.array(["scan.svs"] * 120).dictionary_encode()}
    pq.write_table(pa.table(columns), archive.path / "images.parquet")
    asked = []

    def read(self, path, x, y, side_level0, side):
        asked.append((str(path), x, y, side_level0))
        return Image.new("RGB", (side, side))

    monkeypatch.setattr(SlideReader, "read", read)
    lines = [("a", "b")] * 2
    assert hardest._gallery(archive, np.array([7, 3]), lines) is None  # the size of patches is not known
    archive.geometry = {"slide-000": sf.Geometry("pixels", 512.0, 0, 0.25, "reader 1.0")}
    assert len(hardest._gallery(archive, np.array([7, 3]), lines).images) == 2
    assert asked == [("scan.svs", 7 * 256, 7 * 256, 512), ("scan.svs", 3 * 256, 3 * 256, 512)]
    selected = sf.open(archive.path, slides=["slide-004", "slide-000"])
    assert hardest.image_paths(selected, np.array([0])) is None  # its rows are others


def test_attributes_are_checked_for_confounding(planted, tmp_path):
    archive, *_, folder = planted
    site = {name: f"site-{index % 2}" for index, name in enumerate(archive.slides)}
    scanner = (np.arange(len(archive)) % 2).tolist()
    text = Seen(write(planted, tmp_path, attributes={"site": site, "scanner": scanner})).text
    assert "The scanner is not told from the fused feature" in text
    (tmp_path / "sites.csv").write_text("slide_id,site\n" + "".join(f"{s},{v}\n" for s, v in site.items()))
    out = tmp_path / "cli.html"
    options = ("--attribute", f"site={tmp_path / 'sites.csv'}", "--device", "cpu")
    run = call("report", folder / "student", archive.path, "--out", out, *options)
    assert run.returncode == 0, run.stderr
    assert "site" in Seen(out.read_text()).text
    with pytest.raises(sf.MismatchError, match=r"one value per patch \(300\)"):
        write(planted, tmp_path, attributes={"site": ["a"]})
    with pytest.raises(sf.MismatchError, match="none of its slides"):
        write(planted, tmp_path, attributes={"site": {"elsewhere": "a"}})


def test_a_slide_with_two_values_of_an_attribute(planted, tmp_path):
    *_, folder = planted
    (tmp_path / "t.csv").write_text("slide_id,site\nslide-000,a\nslide-000,b\n")
    run = call("report", folder / "student", planted[0].path, "--attribute", f"site={tmp_path / 't.csv'}")
    assert run.returncode == 1
    assert "one value per slide expected" in run.stderr


def test_wrong_objects(planted, tmp_path):
    archive, result, found, _ = planted
    with pytest.raises(sf.ShazamError, match="found neither"):
        sf.report(archive=archive)
    with pytest.raises(sf.ShazamError, match="give it as comparison="):
        sf.report(found, archive)
    with pytest.raises(sf.ShazamError, match="give it as archive="):
        sf.report(archive)
    with pytest.raises(sf.ShazamError, match="found int"):
        sf.report(3, archive)
    with pytest.raises(sf.ShazamError, match="archive: an archive or its path expected, found TrainResult"):
        sf.report(result, result)
    with pytest.raises(sf.ShazamError, match=r"comparison: .* found dict"):
        sf.report(result, archive, comparison=found.to_dict())
    (tmp_path / "other.json").write_text('{"methods": 3}')
    with pytest.raises(sf.ArchiveError, match="corrupt document"):
        sf.report(comparison=tmp_path / "other.json")
    with pytest.raises(sf.MismatchError, match="no patch is marked 'none'"):
        sf.report(result, archive, tmp_path / "r.html", split="none")
    (tmp_path / "file").touch()
    with pytest.raises(sf.ShazamError, match="is a file"):
        sf.report(result, archive, tmp_path / "file" / "r.html")
