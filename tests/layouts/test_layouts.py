"""Teachers and slides of every layout: names, geometry, what is refused, what is left out."""

import json
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import tools
import torch

import shazam_fast as sf
from shazam_fast.formats.hdf5_attributes import read_attributes
from shazam_fast.layouts.directories import find_features

h5py = pytest.importorskip("h5py")


def listed(sources):
    return [(source.teacher, source.slide) for source in sources]


def write_h5(path, coords, dim=8, dtype=np.float32, **attributes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = np.random.default_rng(dim).normal(size=(len(coords), dim)).astype(dtype)
        file["coords"] = np.asarray(coords)
        file["coords"].attrs.update(attributes)


GRID = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * 512


# Names


def test_trident_from_every_place_above_it(tmp_path, monkeypatch):
    for encoder in ("uni_v1", "conch_v15"):
        tools.trident(tmp_path / "out", encoder)
    tools.trident_slide(tmp_path / "out" / "20x_256px_0px_overlap")
    job = tmp_path / "out" / "20x_256px_0px_overlap"
    expected = [(encoder, slide) for encoder in ("conch_v15", "uni_v1") for slide in tools.SLIDES]
    assert listed(find_features(job)) == listed(find_features(tmp_path)) == expected
    assert listed(find_features(job / "features_uni_v1")) == expected[4:]
    monkeypatch.chdir(job / "features_uni_v1")
    assert listed(find_features(tmp_path.__class__())) == expected[4:]
    tools.trident(tmp_path / "out" / "more")
    with pytest.raises(sf.ArchiveError, match="several jobs of TRIDENT"):
        sf.open(tmp_path)


def test_the_files_own_name_of_the_teacher_comes_first(tmp_path):
    tools.trident(tmp_path, "uni_v1")
    folder = tmp_path / "20x_256px_0px_overlap" / "features_uni_v1"
    folder.rename(folder.with_name("features_renamed"))
    assert list(sf.open(tmp_path).teachers) == ["uni_v1"]
    assert list(sf.open({"mine": tmp_path}).teachers) == ["mine"]


def test_two_encoders_under_one_name_are_refused(tmp_path):
    tools.trident(tmp_path, "uni_v1")
    folder = tmp_path / "20x_256px_0px_overlap" / "features_uni_v1"
    with h5py.File(folder / "c.h5", "a") as file:
        file["features"].attrs["encoder"] = "uni_v2"
    with pytest.raises(sf.MismatchError, match=r"a\.h5 holds 8 columns of 'uni_v1', .*c\.h5 8 of 'uni_v2'"):
        sf.open(tmp_path)


def test_several_extractors_of_stamp_are_several_teachers(tmp_path):
    tools.stamp(tmp_path, "uni2")
    tools.stamp(tmp_path, "virchow2", dim=6)
    assert sf.open(tmp_path).teachers == {"uni2": 8, "virchow2": 6}
    shutil.copytree(tmp_path / "uni2-49b04e14", tmp_path / "uni2-ffffffff")
    with pytest.raises(sf.MismatchError, match="folders uni2-49b04e14 and uni2-ffffffff both hold 'uni2'"):
        sf.open(tmp_path)
    both = sf.open({"old": tmp_path / "uni2-49b04e14", "new": tmp_path / "uni2-ffffffff"})
    assert both.teachers == {"old": 8, "new": 8}


def test_classes_of_slide2vecs_annotations_are_parts_of_a_slide(tmp_path):
    for annotation in ("tumor", "stroma"):
        for folder in ("tile_embeddings", "tiles"):
            (tmp_path / folder / annotation).mkdir(parents=True)
        torch.save(torch.randn(5, 8), tmp_path / "tile_embeddings" / annotation / "b.pt")
        x = np.arange(5) * 512 + (annotation == "tumor") * 9000
        np.savez(tmp_path / "tiles" / annotation / "b.coordinates.npz", x=x, y=x * 0)
    archive = sf.open(tmp_path, labels="folder")
    assert archive.slides == ("b",)
    assert archive.classes == ("stroma", "tumor")
    assert archive.labels.tolist() == [0] * 5 + [1] * 5
    assert archive.coords[:, 0].tolist() == [*range(0, 2560, 512), *range(9000, 11560, 512)]


def test_names_of_one_slide_differ_between_tools(tmp_path):
    for place, name in (("u", "case.svs"), ("v", "case.ome")):
        write_h5(tmp_path / place / f"{name}.h5", GRID)
    assert sf.open({"uni": tmp_path / "u", "virchow": tmp_path / "v"}).slides == ("case",)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("userblock_size", [0, 512])
def test_attributes_are_those_of_h5py(tmp_path, libver, userblock_size):
    path = tmp_path / "a.h5"
    numbers = {"int": 3, "float": 0.25, "negative": np.int16(-7), "big": np.array([1, 2], ">u4"), "half": np.float16(2)}
    texts = {"encoder": "uni ü", "empty": ""}
    with h5py.File(path, "w", libver=libver, userblock_size=userblock_size) as file:
        file["x"] = [1.0]
        file["x"].attrs.update({**numbers, **texts, "fixed": np.bytes_(b"abc")})
        file.attrs["unit"] = "um"
    with h5py.File(path) as file:
        found = read_attributes(path, file["x"], (*numbers, *texts, "fixed", "absent"))
        assert {name: found[name] for name in (*texts, "fixed")} == {**texts, "fixed": "abc"}
        for name, value in numbers.items():
            np.testing.assert_array_equal(found[name], np.atleast_1d(value))
        assert len(found) == len(numbers) + 3
        assert read_attributes(path, file, ("unit",)) == {"unit": "um"}


# Geometry


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"patch_size": 256, "patch_size_level0": 1024}, 1024),
        ({"patch_size": 256, "patch_level": 0}, 256),
        ({"patch_size": 256, "patch_level": 1, "downsample": [4.0, 4.0]}, 1024),
        ({"patch_size": 256, "patch_level": 0, "custom_downsample": 2}, 512),
        ({"patch_size": 256, "patch_level": 1}, None),
        ({"patch_size": 256}, None),
        ({}, None),
    ],
)
def test_the_size_of_a_patch_is_what_the_file_says(tmp_path, attributes, size):
    write_h5(tmp_path / "f" / "s.h5", GRID, **attributes)
    geometry = sf.open(tmp_path / "f").geometry.get("s", sf.Geometry())
    assert geometry.patch_size == size
    assert geometry.level == attributes.get("patch_level")


@pytest.mark.parametrize("size", [-1, np.nan, "wide", [256, np.inf]])
def test_a_size_that_is_none_is_refused(tmp_path, size):
    write_h5(tmp_path / "f" / "s.h5", GRID, patch_size_level0=size)
    with pytest.raises(sf.ArchiveError, match=r"s\.h5: attributes of the coordinates: patch_size"):
        sf.open(tmp_path / "f")


def test_teachers_of_other_patches_are_not_joined(tmp_path):
    write_h5(tmp_path / "u" / "s.h5", GRID, patch_size_level0=256)
    write_h5(tmp_path / "v" / "s.h5", GRID, patch_size_level0=1024)
    write_h5(tmp_path / "w" / "s.h5", GRID)
    with pytest.raises(sf.MismatchError, match=r"u/s\.h5 .*v/s\.h5 .*patch_size 256 and 1024 pixels"):
        sf.open({"uni": tmp_path / "u", "virchow": tmp_path / "v"})
    archive = sf.open({"uni": tmp_path / "u", "gigapath": tmp_path / "w"})
    assert archive.geometry["s"].patch_size == 256


def test_micrometres_are_not_joined_with_pixels(tmp_path):
    tools.stamp(tmp_path)
    for slide in tools.SLIDES:
        write_h5(tmp_path / "u" / f"{slide}.h5", tools.corners(slide) / 4, patch_size_level0=128)
    with pytest.raises(sf.MismatchError, match="unit pixels and micrometres"):
        sf.open({"uni": tmp_path / "u", "uni2": tmp_path / "uni2-49b04e14"})


def test_slide2vec_is_joined_by_its_own_coordinates(tmp_path):
    left = tools.slide2vec(tmp_path / "u", encoder="uni")
    right = tools.slide2vec(tmp_path / "v", encoder="virchow", order=-1)  # the rows of each slide backwards
    archive = sf.open({"uni": left, "virchow": right})
    first = archive.gather(np.arange(12))
    np.testing.assert_array_equal(first[:, :8], first[::-1, 8:])
    assert archive.geometry["a"] == sf.Geometry("pixels", 512, level=1, mpp=0.25)


# Directories


def test_clams_marks_of_slides_that_are_done(tmp_path):
    tools.clam(tmp_path / "uni")
    (tmp_path / "uni" / "pt_files" / "b.pt").unlink()
    (tmp_path / "uni" / "h5_files" / "c.h5").unlink()
    with pytest.raises(sf.ArchiveError, match=r"b\.h5: pt_files/b\.pt is missing, so CLAM has not finished"):
        sf.open(tmp_path / "uni")
    archive = sf.open(tmp_path / "uni", on_error="skip")
    assert archive.slides == ("a", "d")
    assert "c.h5: not there, though pt_files holds c.pt" in archive.left_out["c"]


def test_clam_with_fewer_rows_than_coordinates(tmp_path):
    tools.clam(tmp_path / "uni")
    write_h5(tmp_path / "uni" / "h5_files" / "b.h5", GRID[:8])
    torch = pytest.importorskip("torch")
    torch.save(torch.zeros(8, 8), tmp_path / "uni" / "pt_files" / "b.pt")
    with pytest.raises(sf.ArchiveError, match=r"b\.h5: 8 rows, but .*patches/b\.h5 has 12"):
        sf.open(tmp_path / "uni")


@pytest.mark.parametrize(("dim", "zip_format"), [(8, True), (512, True), (1024, True), (512, False)])
def test_clam_with_other_rows_in_its_two_files(tmp_path, dim, zip_format, monkeypatch):
    torch = pytest.importorskip("torch")
    features = np.ones((10, dim), np.float32)

    def write(rows, name="s" * 40):
        for folder in ("h5_files", "pt_files"):
            (tmp_path / folder).mkdir(exist_ok=True)
        with h5py.File(tmp_path / "h5_files" / f"{name}.h5", "w") as file:
            file["features"] = features
        copy = tmp_path / "pt_files" / f"{name}.pt"
        torch.save(torch.ones(rows, dim), copy, _use_new_zipfile_serialization=zip_format)

    for rows in (9, 11, 20):
        write(rows)
        with pytest.raises(sf.ArchiveError, match=rf"s\.h5: 10 rows, but .*s\.pt has {rows} for the same slide"):
            sf.open(tmp_path)
    write(10)
    assert sf.open(tmp_path).n_rows == 10
    if zip_format and dim > 8:  # the sizes say enough
        monkeypatch.delattr("shazam_fast.formats.torch_zip.read_piece")
        assert sf.open(tmp_path).n_rows == 10


def test_features_of_one_teacher_in_two_folders_or_kinds(tmp_path):
    """Which of them is meant is not guessed."""
    tools.clam(tmp_path / "uni")
    (tmp_path / "uni" / "tile_embeddings").mkdir()
    np.save(tmp_path / "uni" / "tile_embeddings" / "a.npy", np.ones((3, 8), np.float32))
    with pytest.raises(sf.ArchiveError, match=r"uni: features in several folders \(h5_files, tile_embeddings\)"):
        sf.open(tmp_path / "uni")
    run = tools.slide2vec(tmp_path / "v")
    np.savez(run / "tile_embeddings" / "a.npz", features=np.ones((12, 8)))
    with pytest.raises(sf.ArchiveError, match=r"tile_embeddings: files of two kinds \(.pt and .npz\)"):
        sf.open(run)


def test_labels_of_thunder_that_are_no_classes(tmp_path):
    source = tools.thunder(tmp_path / "t")
    (file, *_) = sorted(source.rglob("labels.h5"))
    with h5py.File(file, "a") as content:
        del content["0"]
        content["0"] = 0.5
    with pytest.raises(sf.ArchiveError, match=r"labels\.h5: one whole number per patch expected, found float"):
        sf.convert(source, tmp_path / "out")


@pytest.mark.parametrize("damage", ["truncated", "empty", "other rows", "missing"])
def test_a_broken_slide_is_named_or_left_out_for_all_teachers(tmp_path, damage, caplog):
    for teacher in ("uni", "virchow"):
        for slide in "abc":
            write_h5(tmp_path / teacher / f"{slide}.h5", GRID)
    broken = tmp_path / "virchow" / "b.h5"
    content = broken.read_bytes()
    {
        "truncated": lambda: broken.write_bytes(content[:-400]),
        "empty": lambda: broken.write_bytes(b""),
        "other rows": lambda: write_h5(broken, GRID[1:]),
        "missing": broken.unlink,
    }[damage]()
    source = {teacher: tmp_path / teacher for teacher in ("uni", "virchow")}
    with pytest.raises(sf.ShazamError, match=r"b\.h5"):
        sf.open(source)
    archive = sf.open(source, on_error="skip")
    assert (archive.slides, archive.n_rows) == (("a", "c"), 32)
    assert "b.h5" in archive.left_out["b"]
    assert "left out 1 of 3 slides" in caplog.text
    sf.convert(source, tmp_path / "out", on_error="skip")
    assert sf.open(tmp_path / "out").slides == ("a", "c")
    with pytest.raises(sf.MismatchError, match="on_error is 'raise' or 'skip', not 'ignore'"):
        sf.open(source, on_error="ignore")


def test_slides_of_two_dtypes_are_converted(tmp_path):
    write_h5(tmp_path / "uni" / "a.h5", GRID, dtype=np.float16)
    write_h5(tmp_path / "uni" / "b.h5", GRID)
    with pytest.raises(sf.MismatchError, match=r"a\.h5 holds float16, .*b\.h5 float32; shazam_fast.convert"):
        sf.open(tmp_path / "uni")
    sf.convert(tmp_path / "uni", tmp_path / "out", dtype="float32")
    with h5py.File(tmp_path / "uni" / "a.h5") as a, h5py.File(tmp_path / "uni" / "b.h5") as b:
        expected = np.concatenate([a["features"][:].astype(np.float32), b["features"][:]])
    np.testing.assert_array_equal(sf.open(tmp_path / "out").gather(np.arange(32)), expected)


def test_what_is_no_archive_is_called_what_it_is(tmp_path):
    for name, what in (
        ("_scores.json", "scores; a command that takes it: heatmap"),
        ("_scores.parquet", "scores; a command that takes it: heatmap"),
        ("slides.parquet", "scores of slides"),
        ("student.json", "a student; a command that takes it: evaluate"),
        ("finetuned.json", "a fine-tuned teacher; a command that takes it: extract"),
        ("comparison.json", "a comparison; a command that takes it: compare"),
        ("selection.json", "selected patches; a command that takes it: slides train"),
        ("checkpoint.safetensors", "an unfinished training; a command that takes it: train"),
    ):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).touch()
        (folder / "part-00000.safetensors").touch()
        for path, holds in ((folder, "it"), (folder / "part-00000.safetensors", f"it belongs to {folder}, which")):
            with pytest.raises(sf.ArchiveError, match=f"features expected, but {holds} holds {what}") as caught:
                sf.open({"uni": path})
            assert caught.value.kind == "foreign"
    tools.native(tmp_path / "above")
    with pytest.raises(sf.MismatchError, match=r"native archives \('native'\); open one of them"):
        sf.open(tmp_path / "above")


# Native archives among others


def test_native_archives_join_with_tools(tmp_path):
    tools.native(tmp_path)
    tools.trident(tmp_path / "job", "conch_v15", dim=6)
    source = {"mine": tmp_path / "native", "conch_v15": tmp_path / "job"}
    archive = sf.open(source, labels=tools.LABELS, splits=tools.SPLITS)
    assert archive.teachers == {"mine": 8, "conch_v15": 6}
    assert archive.slides == tuple(tools.SLIDES)
    expected = np.concatenate([np.concatenate([tools.make(s, dim) for s in tools.SLIDES]) for dim in (8, 6)], axis=1)
    np.testing.assert_array_equal(archive.gather(np.arange(37)), expected)
    assert archive.geometry["a"].patch_size == 512


def test_labels_splits_and_patients_of_native_archives_survive_joining(tmp_path):
    rows = np.arange(12)
    slides = np.repeat(["s1", "s2", "s3"], 4)
    shuffled = np.random.default_rng(0).permutation(12)
    for name, order, classes in (("a", rows, ["normal", "tumour"]), ("b", shuffled, ["tumour", "normal"])):
        sf.write_archive(
            tmp_path / name,
            {name: rows[order, None] * np.ones((1, 3))},
            slides=slides[order],
            coords=np.stack([rows % 4 * 256, rows * 0], 1)[order],
            labels=np.array(["normal", "tumour"])[rows % 2][order],
            splits=np.where(slides == "s3", "val", "train")[order],
            groups=np.char.add("patient-", slides)[order],
            classes=classes,
        )
    archive = sf.open({name: tmp_path / name for name in "ab"})
    assert archive.classes == ("normal", "tumour")
    assert archive.labels.tolist() == (rows % 2).tolist()
    assert archive.groups == ("patient-s1", "patient-s2", "patient-s3")
    assert archive.splits.tolist() == [0] * 8 + [1] * 4
    np.testing.assert_array_equal(archive.gather(rows), np.repeat(rows[:, None], 6, axis=1))
    chosen = sf.open(tmp_path / "b", slides=["s3", "s1"], teachers=["b"])
    assert chosen.slides == ("s3", "s1")
    assert sorted(chosen.gather(np.arange(4))[:, 0]) == [8, 9, 10, 11]
    with pytest.raises(sf.MismatchError, match="no teacher 'c'; found b"):
        sf.open(tmp_path / "b", teachers=["c"])


def test_labels_of_two_archives_that_contradict_each_other(tmp_path):
    for name, label in (("a", "normal"), ("b", "tumour")):
        given = {"slides": ["s"] * 3, "labels": [label] * 3, "classes": ["normal", "tumour"]}
        sf.write_archive(tmp_path / name, {name: np.ones((3, 2))}, **given)
    with pytest.raises(sf.MismatchError, match=r"labels in .*a and .*b differ: 0 and 1 in row 0"):
        sf.open({name: tmp_path / name for name in "ab"})


def test_how_features_were_made_is_known_of_renamed_teachers(tmp_path):
    for name in "ab":
        sf.write_archive(tmp_path / name, {name: np.ones((4, 2))}, slides=["s"] * 4)
        file = tmp_path / name / "archive.json"
        job = {"job": {"teachers": {name: {"pooling": f"cls of {name}"}}}}
        content = json.loads(file.read_text()) | job
        del content["document_xxh3"]
        file.write_text(json.dumps(content))
    archive = sf.open({"a": tmp_path / "a", "x": tmp_path / "b"})
    assert archive.records == {"a": {"pooling": "cls of a"}, "x": {"pooling": "cls of b"}}


# Archives in other processes and places


@pytest.mark.parametrize("kind", ["trident", "native", "stamp", "joined"])
def test_archives_go_to_other_processes_and_survive_a_change_of_directory(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    place = type(tmp_path)("here")
    place.mkdir()
    if kind == "joined":
        archive = sf.open({"a": tools.native(place), "b": tools.npy(place)}, labels=tools.LABELS)
    else:
        archive = sf.open(getattr(tools, kind)(place), labels=tools.LABELS)
    expected = archive.gather([3, 0])
    content = pickle.dumps(archive)
    (tmp_path / "there").mkdir()
    os.chdir(tmp_path / "there")
    again = pickle.loads(content)
    np.testing.assert_array_equal(again.gather([3, 0]), expected)
    np.testing.assert_array_equal(archive.gather([3, 0]), expected)
    assert again.labels.tolist() == archive.labels.tolist()
    assert again.geometry == archive.geometry
    if kind == "trident":
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            np.testing.assert_array_equal(pool.submit(sf.FeatureArchive.gather, archive, [3, 0]).result(60), expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([True, False, True]), "found a mask of booleans; use numpy.flatnonzero"),
        ([0.0, 1.5], "whole numbers expected, found float64"),
        (3, r"found an array of shape \[\]"),
        ([["a"]], r"found an array of shape \[1, 1\]"),
        (["1"], "whole numbers expected"),
    ],
)
def test_rows_are_whole_numbers(tmp_path, rows, message):
    archive = sf.open(tools.npy(tmp_path))
    for call in (archive.gather, lambda rows: next(archive.stream(rows)), lambda rows: next(archive.batches(rows))):
        with pytest.raises(sf.MismatchError, match=message):
            call(rows)
    assert archive.gather([]).shape == (0, 8)


def test_a_nan_names_slide_file_teacher_and_row(tmp_path):
    for slide in "ab":
        write_h5(tmp_path / "uni" / f"{slide}.h5", GRID)
        write_h5(tmp_path / "virchow" / f"{slide}.h5", GRID[::-1], dim=6)
    with h5py.File(tmp_path / "virchow" / "b.h5", "a") as file:
        file["features"][2, 1] = np.nan  # the last but two of the first teacher's rows
    archive = sf.open({teacher: tmp_path / teacher for teacher in ("uni", "virchow")})
    with pytest.raises(sf.NonFiniteError) as caught:
        archive.verify()
    message = str(caught.value)
    for part in ("teacher 'virchow'", "row 29 (slide 'b'", "virchow/b.h5, row 2 of its rows", "position (512, 1536)"):
        assert part in message


def test_damaged_meta_of_slide2vec_is_named(tmp_path):
    run = tools.slide2vec(tmp_path)
    (run / "tile_embeddings" / "b.meta.json").write_text(json.dumps({"tile_size_lv0": "wide"}))
    with pytest.raises(sf.ArchiveError, match=r"b\.meta\.json: cannot be read"):
        sf.open(run)


def test_a_teachers_folder_without_features_is_named(tmp_path, caplog):
    for folder in ("features_uni", "features_virchow"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "features_uni" / "a.npy", np.ones((3, 8), dtype=np.float32))
    assert list(sf.open(tmp_path).teachers) == ["uni"]
    assert "passed over 1 of the teachers' folders, without features" in caplog.text
    assert "features_virchow" in caplog.text


def test_folders_that_may_be_teachers_are_named(tmp_path, caplog):
    for place in ("uni/a", "uni/b", "virchow/a"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{place}.npy", np.ones((3, 8), dtype=np.float32))
    assert len(sf.open(tmp_path).slides) == 3
    assert not caplog.text  # other slides in each
    np.save(tmp_path / "virchow" / "b.npy", np.ones((3, 8), dtype=np.float32))
    assert len(sf.open(tmp_path).slides) == 4
    assert "'uni', 'virchow' hold files of the same names" in caplog.text
    assert "{teacher: path}" in caplog.text
