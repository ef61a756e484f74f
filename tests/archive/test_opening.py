"""Pointing `open` at what tools leave behind."""

import os

import numpy as np
import pytest
import torch

import shazam_fast as sf
from shazam_fast.images.sources import class_folders
from shazam_fast.tables.reader import read_table


def grid(rows):
    return np.stack([np.arange(rows) % 7 * 256, np.arange(rows) // 7 * 256], axis=1)


def matrix(seed, rows, dim):
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


@pytest.fixture
def trident(tmp_path):
    """A TRIDENT job: three slides, two encoders, chunks of one row."""
    h5py = pytest.importorskip("h5py", reason="TRIDENT's files need h5py")
    features = {}
    for index, (encoder, dim) in enumerate({"uni_v1": 16, "conch_v15": 12}.items()):
        folder = tmp_path / "out" / "20x_512px_0px_overlap" / f"features_{encoder}"
        folder.mkdir(parents=True)
        for slide, rows in enumerate((30, 41, 25)):
            array = matrix([index, slide], rows, dim)
            features[encoder, slide] = array
            with h5py.File(folder / f"case-{slide}.h5", "w") as file:
                data = file.create_dataset("features", data=array, chunks=(1, dim), maxshape=(None, dim))
                data.attrs["encoder"] = encoder
                file.create_dataset("coords", data=grid(rows), chunks=(1, 2), maxshape=(None, 2))
    (tmp_path / "out" / "20x_512px_0px_overlap" / "patches").mkdir()
    return tmp_path / "out", features


def test_a_trident_job_to_a_trained_student(trident):
    """The README's example."""
    job, features = trident
    labels, splits = (
        dict(zip(("case-0", "case-1", "case-2"), v.split(), strict=True)) for v in ("a b a", "train train val")
    )
    archive = sf.open(job, labels=labels, splits=splits)  # fmt: skip
    assert archive.teachers == {"conch_v15": 12, "uni_v1": 16}
    assert archive.slides == ("case-0", "case-1", "case-2")
    expected = [np.concatenate([features[e, s] for s in range(3)]) for e in ("conch_v15", "uni_v1")]
    np.testing.assert_array_equal(archive.gather(np.arange(96)), np.concatenate(expected, axis=1))
    np.testing.assert_array_equal(archive.coords[30:71], grid(41))
    result = sf.train(archive, epochs=1, batch_size=16, dim=8, depth=1)
    assert sf.score(result.student, job).shares.shape == (96, 2)


def test_a_selection_of_teachers_and_slides(trident):
    job, features = trident
    archive = sf.open(job, teachers=["uni_v1"], slides=["case-2", "case-0"])
    assert archive.teachers == {"uni_v1": 16}
    np.testing.assert_array_equal(archive.gather([0, 25]), [features["uni_v1", 2][0], features["uni_v1", 0][0]])
    both = sf.open(job, teachers=["uni_v1", "conch_v15"])
    assert list(both.teachers) == ["uni_v1", "conch_v15"]
    with pytest.raises(sf.MismatchError, match="no teacher 'titan'; found conch_v15, uni_v1"):
        sf.open(job, teachers=["titan"])


def test_one_encoder_of_a_job_under_another_name(trident):
    job, _ = trident
    folder = job / "20x_512px_0px_overlap" / "features_uni_v1"
    assert sf.open(folder).teachers == {"uni_v1": 16}
    assert sf.open({"uni": folder}).teachers == {"uni": 16}
    assert sf.open({"uni_v1": job}).teachers == {"uni_v1": 16}
    with pytest.raises(sf.MismatchError, match="teacher 'uni' not found; it holds conch_v15, uni_v1"):
        sf.open({"uni": job})


def test_tools_are_joined_with_each_other(trident, tmp_path):
    """One teacher from TRIDENT, another as .npy, a third as slide2vec's .pt."""
    job, _ = trident
    for slide, rows in enumerate((30, 41, 25)):
        for folder in ("npy", "slide2vec/tile_embeddings"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "npy" / f"case-{slide}.npy", matrix(slide, rows, 5).astype(np.float16))
        torch.save(
            torch.from_numpy(matrix(slide, rows, 6)), tmp_path / "slide2vec" / "tile_embeddings" / f"case-{slide}.pt"
        )
        (tmp_path / "slide2vec" / "tile_embeddings" / f"case-{slide}.meta.json").write_text("{}")
    archive = sf.open({"uni_v1": job, "virchow": tmp_path / "npy", "gigapath": tmp_path / "slide2vec"})
    assert archive.teachers == {"uni_v1": 16, "virchow": 5, "gigapath": 6}
    np.testing.assert_array_equal(archive.gather([30])[0, 21:], matrix(1, 41, 6)[0])
    np.testing.assert_array_equal(archive.coords[:30], grid(30))


def test_single_files(tmp_path):
    np.save(tmp_path / "train_uni.npy", matrix(0, 9, 4))
    torch.save((torch.from_numpy(matrix(1, 9, 5)), torch.arange(9) % 3), tmp_path / "train_virchow.pt")
    archive = sf.open({"uni": tmp_path / "train_uni.npy", "virchow": tmp_path / "train_virchow.pt"})
    assert archive.slides == ()
    assert archive.labels.tolist() == [0, 1, 2] * 3
    np.testing.assert_array_equal(archive.gather([4]), np.concatenate([matrix(0, 9, 4)[4:5], matrix(1, 9, 5)[4:5]], 1))
    assert sf.open(tmp_path / "train_uni.npy").teachers == {"train_uni": 4}


def test_shazams_three_levels_are_three_teachers(tmp_path):
    levels = [torch.from_numpy(matrix(i, 6, 4)) for i in range(3)]
    torch.save((*levels, torch.arange(6) % 2), tmp_path / "uni.pt")
    archive = sf.open(tmp_path / "uni.pt")
    assert archive.teachers == {"uni:low": 4, "uni:mid": 4, "uni": 4}
    np.testing.assert_array_equal(archive.gather([5]), np.concatenate([level[5:].numpy() for level in levels], axis=1))
    assert archive.labels.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uni", ["uni:low", "uni:mid", "uni"]),
        ("virchow2", ["virchow2:low", "virchow2:mid", "virchow2"]),
        ("uni:mid", ["uni:mid"]),
        ("virchow2:low", ["virchow2:low"]),
        ("uni:high", ["uni"]),
    ],
)
def test_a_name_takes_all_levels_or_one(tmp_path, name, expected):
    levels = [torch.from_numpy(matrix(i, 6, 4)) for i in range(3)]
    torch.save(tuple(levels), tmp_path / "uni.pt")
    archive = sf.open({name: tmp_path / "uni.pt"})
    assert list(archive.teachers) == expected
    of = {"low": levels[0], "mid": levels[1]}
    for found in expected:
        np.testing.assert_array_equal(
            archive.gather([3, 1])[:, archive.columns_of(found)], of.get(found.partition(":")[2], levels[2])[[3, 1]]
        )


def test_clam_prefers_the_files_with_coordinates(tmp_path):
    h5py = pytest.importorskip("h5py", reason="CLAM's files need h5py")
    for folder in ("h5_files", "pt_files"):
        (tmp_path / "clam" / folder).mkdir(parents=True)
    with h5py.File(tmp_path / "clam" / "h5_files" / "s.h5", "w") as file:
        file.create_dataset("features", data=matrix(0, 40, 8), chunks=(32, 8), maxshape=(None, 8))
        file.create_dataset("coords", data=grid(40).astype(np.int32), chunks=(32, 2), maxshape=(None, 2))
    torch.save(torch.from_numpy(matrix(0, 40, 8)), tmp_path / "clam" / "pt_files" / "s.pt")
    archive = sf.open({"uni": tmp_path / "clam"})
    np.testing.assert_array_equal(archive.gather(np.arange(40)), matrix(0, 40, 8))
    np.testing.assert_array_equal(archive.coords, grid(40))


def test_an_open_archive_is_passed_through(archive):
    assert sf.open(archive) is archive
    with pytest.raises(sf.MismatchError, match="open already"):
        sf.open(archive, labels="folder")
    relabelled = sf.open(archive.path, labels=np.zeros(300, int), classes=["a", "b"])
    assert relabelled.classes == ("a", "b")


def test_paths_that_hold_no_features(tmp_path):
    with pytest.raises(sf.ArchiveError, match="no such file or directory"):
        sf.open(tmp_path / "nothing")
    (tmp_path / "slide.svs").write_text("")
    with pytest.raises(sf.ArchiveError, match=r"features are read from .h5, .*, not from .svs"):
        sf.open(tmp_path / "slide.svs")
    with pytest.raises(sf.ArchiveError, match="none of its files could be features"):
        sf.open(tmp_path)
    np.save(tmp_path / "a.npy", matrix(0, 3, 2))
    torch.save(torch.zeros(3, 2), tmp_path / "b.pt")
    with pytest.raises(sf.ArchiveError, match=r"files of several kinds \(.npy, .pt\)"):
        sf.open(tmp_path)
    with pytest.raises(sf.ArchiveError, match="found an empty mapping"):
        sf.open({})


def test_a_damaged_slide_is_named(trident):
    job, _ = trident
    path = job / "20x_512px_0px_overlap" / "features_uni_v1" / "case-1.h5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(sf.ArchiveError, match=r"case-1\.h5"):
        sf.open(job)


def test_a_slide_whose_name_is_no_text(tmp_path):
    uni, second = tmp_path / "uni", tmp_path / "second"
    for path in (uni / os.fsdecode(b"M\xfcller.npy"), uni / "Weber.npy", second / "Weber.npy"):
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.ones((3, 8), np.float32))
    with pytest.raises(sf.ArchiveError, match=r"M\\udcfcller.npy': its slide's name is not UTF-8 text; rename it, or"):
        sf.open({"uni": uni})
    for paths in ({"uni": uni}, {"uni": uni, "second": second}):
        archive = sf.open(paths, on_error="skip")
        assert archive.slides == ("Weber",)
        assert archive.fingerprint["slides"]
        assert list(archive.left_out) == ["M\\udcfcller"]
        assert archive.left_out["M\\udcfcller"].isascii()


def test_few_descriptors_for_many_slides(tmp_path):
    for slide in range(1500):
        np.save(tmp_path / f"{slide}.npy", np.full((2, 3), slide, np.float32))
    archive = sf.open(tmp_path)
    assert len(archive.slides) == 1500
    gathered = archive.gather(np.arange(0, 3000, 2))[:, 0]
    assert gathered.tolist() == [float(name) for name in archive.slides]
    assert len(os.listdir("/proc/self/fd")) < 1024


def test_the_name_of_a_teacher_is_that_of_its_folder_not_of_a_link_to_it(tmp_path):
    (tmp_path / "uni").mkdir()
    np.save(tmp_path / "uni" / "a.npy", np.ones((3, 2), np.float32))
    (tmp_path / "link").symlink_to(tmp_path / "uni")
    direct, linked = sf.open(tmp_path / "uni"), sf.open(tmp_path / "link")
    assert list(linked.teachers) == ["uni"]
    assert linked.fingerprint == direct.fingerprint


def test_what_the_system_refuses_is_an_archive_error(tmp_path, monkeypatch):
    (tmp_path / "uni").mkdir()
    for error, kind in (
        (PermissionError(13, "denied", "secret"), "permission"),
        (OSError(5, "input/output"), "system"),
    ):

        def refuse(*_, error=error):
            raise error

        monkeypatch.setattr("shazam_fast.layouts.finding.find_features", refuse)
        with pytest.raises(sf.ArchiveError, match=r"secret: no permission|uni: cannot be read: input/output") as caught:
            sf.open(tmp_path / "uni")
        assert caught.value.kind == kind


def test_an_empty_selection_is_an_error(archive):
    for name in ("teachers", "slides"):
        for path in (archive.path, {"uni": archive.path}):
            with pytest.raises(sf.MismatchError, match=f"{name}: at least one name expected, found none"):
                sf.open(path, **{name: []})


@pytest.mark.parametrize("teacher", ["", 1])
def test_a_path_without_a_teacher(archive, teacher):
    with pytest.raises(sf.ShazamError, match="teachers: a name expected"):
        sf.open({teacher: archive.path})


@pytest.mark.parametrize("path", [None, 5, ["x"], "a\0b", b"a"])
def test_what_is_no_path_is_an_error(archive, tmp_path, path):
    student = sf.Student(sf.StudentConfig(archive.teachers, archive.classes, dim=8, depth=1))
    features = {"uni": np.ones((2, 3))}
    calls = [
        lambda: sf.open(path),
        lambda: sf.open({"uni": path}),
        lambda: sf.convert(path, tmp_path / "a"),
        lambda: sf.convert(archive.path, path),
        lambda: sf.write_archive(path, features),
        lambda: sf.ArchiveWriter(path, {"uni": 3}),
        lambda: sf.load(path),
        lambda: student.save(path),
        lambda: sf.open_scores(path),
        lambda: sf.heatmap(path, tmp_path / "maps"),
        lambda: sf.extract(path, ["uni"], tmp_path / "a"),
        lambda: sf.extract(tmp_path, ["uni"], path),
        lambda: class_folders(path),
        lambda: read_table(path),
    ]
    if path is not None:
        calls += [lambda: sf.train(archive, out=path), lambda: sf.score(student.eval(), archive, out=path)]
    for call in calls:
        with pytest.raises(sf.ShazamError, match="a path expected"):
            call()


@pytest.mark.parametrize("given", [3, None, b"features"])
def test_neither_an_archive_nor_a_path(given):
    student = sf.Student(sf.StudentConfig({"uni": 8}, ("normal", "tumour"), dim=8, depth=1))
    with pytest.raises(sf.ShazamError, match="archive: an archive or its path expected, found"):
        sf.score(student, given)
