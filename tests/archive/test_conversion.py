"""Converting what cannot be opened in place, and packing what can: every format written as its tool writes it."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from interruption import checksums
from synthetic import TEACHERS

import shazam_fast as sf
from shazam_fast.archive import conversion
from shazam_fast.runtime.jobs.locks import DirectoryLock

SLIDES = {"slide-a": 31, "slide-b": 0, "slide-c": 70}  # rows of each
DIMS = {"uni": 12, "virchow": 20}


def make_slides(dtype=np.float32, seed=0, slides=SLIDES, dims=DIMS):
    """{teacher: {slide: features}} and {slide: coords}."""
    rng = np.random.default_rng(seed)
    features = {t: {s: rng.normal(size=(n, dim)).astype(dtype) for s, n in slides.items()} for t, dim in dims.items()}
    coords = {s: np.stack([rng.permutation(n) * 256, np.arange(n) * 256], axis=1) for s, n in slides.items()}
    return features, coords


def assert_holds(path, features, coords=None, dtype=np.float16):
    """The archive holds exactly these features, slide after slide, rounded once."""
    archive = sf.open(path)
    archive.verify()
    for teacher, by_slide in features.items():
        expected = np.concatenate([by_slide[slide].astype(dtype) for slide in sorted(by_slide)])
        stored = archive.gather(np.arange(archive.n_rows))[:, archive.columns_of(teacher)]
        np.testing.assert_array_equal(stored, expected.astype(np.float32))
    if coords is not None:
        np.testing.assert_array_equal(archive.coords, np.concatenate([coords[slide] for slide in sorted(coords)]))
    return archive


def write_h5(path, features, coords=None, name="features", **options):
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=features, **options)
        if coords is not None and "coords" not in file:
            file["coords"] = coords


# Whatever can be opened


def test_packing_files_of_several_teachers(tmp_path):
    features, coords = make_slides()
    for teacher in DIMS:
        for slide in SLIDES:
            write_h5(tmp_path / f"features_{teacher}" / f"{slide}.h5", features[teacher][slide], coords[slide])
    (tmp_path / "_logs_feat_uni.txt").write_text("slide-a.svs: DONE")
    labels = {"slide-a": "tumour", "slide-c": "normal"}
    splits = {"slide-a": "train", "slide-c": "test"}
    out = tmp_path.with_name(f"{tmp_path.name}-out")
    report = sf.convert(tmp_path, out, labels=labels, splits=splits, groups={"slide-a": "p1"})
    archive = assert_holds(out, features, coords)
    assert archive.classes == ("normal", "tumour")
    assert archive.labels.tolist() == [1] * 31 + [0] * 70
    assert archive.splits.tolist() == [0] * 31 + [2] * 70
    assert archive.group_index.tolist() == [0] * 31 + [-1] * 70
    assert archive.slides == ("slide-a", "slide-c")
    assert (report.n_rows, report.overflowed) == (101, 0)
    assert report.bytes == sum(p.stat().st_size for p in (out).glob("part-*"))
    moved = [
        np.linalg.norm(x.astype(np.float16) - x, axis=1) / np.linalg.norm(x, axis=1) for x in features["uni"].values()
    ]
    relative = np.concatenate(moved)
    assert report.max_error["uni"] == pytest.approx(relative.max(), rel=1e-5)
    assert report.rms_error["uni"] == pytest.approx(np.sqrt((relative**2).mean()), rel=1e-5)


def test_repacking_a_native_archive(tmp_path, archive, patches):
    report = sf.convert(archive.path, tmp_path / "out")
    again = sf.open(tmp_path / "out")
    rows = np.arange(300)
    np.testing.assert_array_equal(again.gather(rows), archive.gather(rows))
    for column in ("labels", "splits", "slide_index", "group_index", "coords"):
        np.testing.assert_array_equal(getattr(again, column), getattr(archive, column))
    assert (again.teachers, again.classes, again.slides) == (archive.teachers, archive.classes, archive.slides)
    assert report.max_error == dict.fromkeys(TEACHERS, 0.0)
    sf.convert(archive.path, tmp_path / "chosen", teachers=["uni"], slides=["slide-003", "slide-001"])
    chosen = sf.open(tmp_path / "chosen")
    wanted = np.concatenate([np.flatnonzero(archive.slide_index == index) for index in (3, 1)])
    np.testing.assert_array_equal(chosen.gather(np.arange(50)), archive.gather(wanted)[:, archive.columns_of("uni")])
    np.testing.assert_array_equal(chosen.labels, archive.labels[wanted])
    assert [chosen.slides[i] for i in chosen.slide_index[[0, -1]]] == ["slide-003", "slide-001"]


def test_choosing_teachers(tmp_path):
    features, _ = make_slides()
    for teacher in DIMS:
        np.save(tmp_path / f"{teacher}.npy", features[teacher]["slide-c"])
    source = {teacher: tmp_path / f"{teacher}.npy" for teacher in DIMS}
    sf.convert(source, tmp_path / "out", teachers=["virchow"])
    assert sf.open(tmp_path / "out").teachers == {"virchow": 20}
    with pytest.raises(sf.MismatchError, match="no teacher 'titan'; found uni, virchow"):
        sf.convert(source, tmp_path / "other", teachers=["titan"])


def test_float32_keeps_every_bit_and_counts_what_float16_could_not_hold(tmp_path):
    features = make_slides()[0]["uni"]["slide-c"]
    features[3, 4], features[9, :2] = 1e5, [-65520, 65519]
    np.save(tmp_path / "uni.npy", features)
    report = sf.convert(tmp_path / "uni.npy", tmp_path / "out", dtype="float32")
    np.testing.assert_array_equal(sf.open(tmp_path / "out").gather(np.arange(70)), features)
    assert report.overflowed == 2
    assert report.max_error == report.rms_error == {"uni": 0.0}


# What cannot be mapped


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "lzf", "chunks": (30, 8)},
        {"chunks": (16, 5)},
        {"dtype": "float64"},
        {"dtype": ">f4"},
        {"dtype": "float16", "compression": "gzip"},
    ],
)
def test_hdf5_that_cannot_be_mapped(tmp_path, options):
    features, coords = make_slides(dtype=options.get("dtype", "float32"))
    for teacher in DIMS:
        for slide, rows in SLIDES.items():
            write_h5(
                tmp_path / teacher / f"{slide}.h5", features[teacher][slide], coords[slide], **options if rows else {}
            )
    sf.convert({teacher: tmp_path / teacher for teacher in DIMS}, tmp_path / "out")
    if options.get("dtype") == "float64":  # read as float32, the widest that an archive knows
        features = {t: {s: x.astype(np.float32) for s, x in by_slide.items()} for t, by_slide in features.items()}
    assert_holds(tmp_path / "out", features, coords)


def test_mapped_and_compressed_files_in_one_teacher_and_another_order_of_rows(tmp_path, monkeypatch):
    slides = {f"slide-{i}": 20 + i for i in range(6)}
    features, coords = make_slides(slides=slides)
    rng = np.random.default_rng(1)
    for i, (slide, rows) in enumerate(slides.items()):
        options = {"compression": "gzip"} if i in (1, 2, 5) else {}
        write_h5(tmp_path / "uni" / f"{slide}.h5", features["uni"][slide], coords[slide], **options)
        order = rng.permutation(rows)
        write_h5(
            tmp_path / "virchow" / f"{slide}.h5",
            features["virchow"][slide][order],
            coords[slide][order],
            compression="gzip",
        )
    monkeypatch.setattr(conversion, "CHUNK_BYTES", 7 * 32 * 2)  # seven rows: chunks begin and end inside files
    sf.convert({teacher: tmp_path / teacher for teacher in DIMS}, tmp_path / "out")
    assert_holds(tmp_path / "out", features, coords)


def test_compressed_atlaspatch_and_published_features_with_a_leading_axis(tmp_path):
    features, coords = make_slides()
    for slide in ("slide-a", "slide-c"):
        wide = np.pad(coords[slide], ((0, 0), (0, 3)), constant_values=256)
        for teacher in DIMS:
            path = tmp_path / "patches" / f"{slide}.h5"
            write_h5(path, features[teacher][slide], wide, name=f"features/{teacher}", compression="gzip")
    out = tmp_path.with_name(f"{tmp_path.name}-out")
    sf.convert(tmp_path, out)
    assert_holds(out, features, coords)
    write_h5(tmp_path / "uni2.h5", features["uni"]["slide-c"][None], coords["slide-c"][None], compression="gzip")
    sf.convert({"uni": tmp_path / "uni2.h5"}, tmp_path / "leading")
    assert_holds(tmp_path / "leading", {"uni": {"": features["uni"]["slide-c"]}}, {"": coords["slide-c"]})


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_lazyslide(tmp_path, zarr_format):
    """As wsidata writes a store: a table for each model, and the tiles' positions among the shapes, in any order."""
    zarr = pytest.importorskip("zarr")
    anndata = pytest.importorskip("anndata")
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    features, coords = make_slides(slides={"slide-a": 31, "slide-c": 70})
    for slide, positions in coords.items():
        store = tmp_path / "stores" / f"{slide}.zarr"
        tables = zarr.open_group(store, mode="w", zarr_format=zarr_format).create_group("tables")
        for teacher in DIMS:
            tile_id = np.arange(len(positions))
            obs = pd.DataFrame({"tile_id": tile_id, "library_id": pd.Categorical(["tiles"] * len(tile_id))})
            table = anndata.AnnData(features[teacher][slide], obs=obs.set_index(tile_id.astype(str)))
            table.uns["spatialdata_attrs"] = {"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"}
            with anndata.settings.override(allow_write_nullable_strings=True):  # what pandas 3 makes of an index
                anndata.io.write_elem(tables, f"{teacher}_tiles", table)
        order = np.random.default_rng(0).permutation(len(positions))
        shapes = store / "shapes" / "tiles"
        shapes.mkdir(parents=True)
        columns = {"tile_id": order, "x": positions[order, 0], "y": positions[order, 1]}
        pq.write_table(pa.table({**columns, "geometry": [b""] * len(order)}), shapes / "shapes.parquet")
    sf.convert(tmp_path / "stores", tmp_path / "out")
    archive = assert_holds(tmp_path / "out", features, coords)
    assert archive.slides == ("slide-a", "slide-c")
    written = tmp_path / "stores" / "slide-a.zarr" / "tables" / "uni_tiles" / "X"
    next(p for p in sorted(written.rglob("*")) if p.is_file() and p.name[0].isdigit()).unlink()
    with pytest.raises(sf.ArchiveError, match=r"uni_tiles/X: .* chunks are there"):
        sf.convert(tmp_path / "stores", tmp_path / "again")
    pq.write_table(pa.table(columns).slice(1), shapes / "shapes.parquet")
    with pytest.raises(sf.ArchiveError, match=r"uni_tiles: its tiles are not all in .*shapes.parquet"):
        sf.convert(tmp_path / "stores" / "slide-c.zarr", tmp_path / "again")


def test_slide2vec(tmp_path):
    features, _ = make_slides(slides={"slide-a": 31, "slide-c": 70})
    for teacher in DIMS:
        folder = tmp_path / teacher / "tile_embeddings"
        folder.mkdir(parents=True)
        for slide, x in features[teacher].items():
            np.savez_compressed(folder / f"{slide}.npz", features=x, tile_index=np.arange(len(x)))
            (folder / f"{slide}.meta.json").write_text(json.dumps({"sample_id": slide, "format": "npz"}))
    sf.convert({teacher: tmp_path / teacher for teacher in DIMS}, tmp_path / "out")
    assert assert_holds(tmp_path / "out", features).slides == ("slide-a", "slide-c")


def test_one_npz_with_labels_and_coords(tmp_path):
    features, coords = make_slides()
    labels = np.arange(70) % 3
    np.savez(tmp_path / "uni.npz", embeddings=features["uni"]["slide-c"], coords=coords["slide-c"], labels=labels)
    sf.convert(tmp_path / "uni.npz", tmp_path / "out")
    archive = assert_holds(tmp_path / "out", {"uni": {"": features["uni"]["slide-c"]}}, {"": coords["slide-c"]})
    assert archive.labels.tolist() == labels.tolist()


@pytest.mark.parametrize(
    "kind", ["tensor", "pair", "dictionary", "slide", "targets", "transposed", "float64", "bfloat16"]
)
def test_torch_files_that_cannot_be_mapped(tmp_path, kind):
    x = make_slides()[0]["uni"]["slide-c"]
    tensor, labels = torch.tensor(x), torch.arange(70) % 3
    old = {"_use_new_zipfile_serialization": False}
    content, options = {
        "tensor": (tensor, old),
        "pair": ((tensor, labels), old),
        "dictionary": ({"feature": tensor, "label": labels, "paths": ["a.png"] * 70}, old),
        "slide": ({"feats": tensor[None], "label": torch.tensor(2)}, old),
        "targets": ((tensor, torch.rand(70, 5)), old),
        "transposed": (tensor.T.contiguous().T, {}),
        "float64": (tensor.double(), {}),
        "bfloat16": (tensor.bfloat16(), old),
    }[kind]
    torch.save(content, tmp_path / "uni.pt", **options)
    sf.convert(tmp_path / "uni.pt", tmp_path / "out")
    expected = tensor.bfloat16().float().numpy() if kind == "bfloat16" else x
    archive = assert_holds(tmp_path / "out", {"uni": {"": expected}})
    assert (archive.labels >= 0).any() == (kind in ("pair", "dictionary"))


def test_numpy_and_safetensors_files_that_cannot_be_mapped(tmp_path):
    from safetensors.numpy import save_file

    x = make_slides()[0]["uni"]["slide-c"]
    np.save(tmp_path / "fortran.npy", np.asfortranarray(x))
    np.save(tmp_path / "double.npy", x.astype(np.float64))
    save_file({"features": x.astype(np.float64)}, tmp_path / "double.safetensors")
    sf.convert(
        {name: tmp_path / name for name in ("fortran.npy", "double.npy", "double.safetensors")}, tmp_path / "out"
    )
    assert_holds(tmp_path / "out", {name: {"": x} for name in ("fortran.npy", "double.npy", "double.safetensors")})


def write_eva(path, features, targets, splits):
    """As eva's ClassificationEmbeddingsWriter does: a list of vectors for each image, and the manifest beside them."""
    path.mkdir()
    lines = ["origin,embeddings,target,split"]
    for image, x in features.items():
        name = f"{image.removesuffix('.png')}.pt"
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save([torch.tensor(row) for row in x], path / name)
        lines.append(f"{image},{name},{targets[image]},{splits[image]}")
    (path / "manifest.csv").write_text("\r\n".join(lines) + "\r\n")


def test_eva(tmp_path):
    rng = np.random.default_rng(0)
    images = [f"{folder}/{i}.png" for folder in ("ADI", "TUM") for i in range(5)]  # names repeat between folders
    features = {t: {i: rng.normal(size=(1, dim)).astype(np.float32) for i in images} for t, dim in DIMS.items()}
    targets = {image: int(image.startswith("TUM")) for image in images}
    splits = {image: ("train", "val", "test")[n % 3] for n, image in enumerate(images)}
    for teacher in DIMS:
        write_eva(tmp_path / teacher, features[teacher], targets, splits)
    sf.convert({teacher: tmp_path / teacher for teacher in DIMS}, tmp_path / "out")
    archive = assert_holds(tmp_path / "out", features)
    assert archive.slides == tuple(images)
    assert archive.labels.tolist() == [0] * 5 + [1] * 5
    assert [("train", "val", "test")[code] for code in archive.splits] == list(splits.values())

    slides = {"tumor_001.tif": rng.normal(size=(9, 12)).astype(np.float32)}
    write_eva(tmp_path / "wsi", slides, {"tumor_001.tif": 0.25}, {"tumor_001.tif": "val"})
    sf.convert(tmp_path / "wsi", tmp_path / "slides")
    archive = assert_holds(tmp_path / "slides", {"wsi": slides})
    assert archive.classes == (), "targets of a regression are no labels"


def test_thunder(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    sizes = {"train": 30, "val": 12, "test": 11}
    features = {
        t: {s: rng.normal(size=(n, dim)).astype(np.float32) for s, n in sizes.items()} for t, dim in DIMS.items()
    }
    labels = {split: rng.integers(0, 4, n) for split, n in sizes.items()}
    for teacher in DIMS:
        for split, x in features[teacher].items():
            folder = tmp_path / "bach" / teacher / split
            folder.mkdir(parents=True)
            with h5py.File(folder / "embeddings.h5", "w") as file, h5py.File(folder / "labels.h5", "w") as targets:
                for row in range(len(x)):  # keys are sorted as text: 0, 1, 10, 11, 2, ...
                    file.create_dataset(str(row), data=x[row])
                    targets.create_dataset(str(row), data=labels[split][row])
    sf.convert(tmp_path / "bach", tmp_path / "out")
    archive = assert_holds(tmp_path / "out", features)
    assert archive.teachers == DIMS
    assert archive.slides == ()
    assert archive.splits.tolist() == [2] * 11 + [0] * 30 + [1] * 12
    assert archive.labels.tolist() == np.concatenate([labels[s] for s in ("test", "train", "val")]).tolist()
    sf.convert(tmp_path / "bach" / "uni" / "val", tmp_path / "one")
    assert_holds(tmp_path / "one", {"uni": {"": features["uni"]["val"]}})
    (tmp_path / "bach/uni/val/labels.h5").write_bytes((tmp_path / "bach/uni/test/labels.h5").read_bytes())
    with pytest.raises(sf.ArchiveError, match=r"labels.h5: 11 labels for 12 patches in embeddings.h5"):
        sf.convert(tmp_path / "bach", tmp_path / "again")


def test_fusecpath(tmp_path):
    features, _ = make_slides(slides={"TCGA-05-4244kmeans_0": 31, "TCGA-05-4245kmeans_0": 70})
    for teacher in DIMS:
        (tmp_path / teacher).mkdir()
        for slide, x in features[teacher].items():
            (tmp_path / teacher / f"{slide}.txt").write_text(json.dumps(x.tolist()))
    sf.convert({teacher: tmp_path / teacher for teacher in DIMS}, tmp_path / "out")
    assert_holds(tmp_path / "out", features)
    lines = [json.dumps({f"patch_{i}.png": row.tolist()}) for i, row in enumerate(x)]
    (tmp_path / "all.txt").write_text("\n".join(lines))
    sf.convert(tmp_path / "all.txt", tmp_path / "lines")
    assert_holds(tmp_path / "lines", {"all": {"": x}})


# Resuming


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(conversion, "PART_BYTES", 12 * 2 * 20)


@pytest.fixture
def interrupted(tmp_path, small_parts, monkeypatch):
    """A source, and a conversion of it that stopped for a full disk after two of its four parts."""
    features = make_slides()[0]["uni"]["slide-c"]
    np.save(tmp_path / "uni.npy", features)
    write, written = os.write, []

    def full(descriptor, content):
        if len(written) == 20:  # the claim, then seven writes per part and one for its record
            raise OSError(28, "No space left on device")
        written.append(1)
        return write(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(sf.ShazamError, match=r"could not be written.*No space left.*Finished parts are kept"):
            sf.convert(tmp_path / "uni.npy", tmp_path / "out")
    return tmp_path / "uni.npy", tmp_path / "out", features


def test_a_full_disk_leaves_finished_parts_valid(tmp_path, interrupted):
    source, out, features = interrupted
    names = [f"part-{i:05d}.{suffix}" for i in range(2) for suffix in ("json", "safetensors")]
    assert sorted(p.name for p in out.iterdir()) == ["_job.json", *names]
    assert [json.loads((out / f"part-{i:05d}.json").read_text())["part"]["rows"] for i in range(2)] == [20, 20]
    with pytest.raises(sf.ArchiveError, match="its writing was interrupted"):
        sf.open(out)
    sf.convert(source, out)
    sf.convert(source, tmp_path / "other")
    assert checksums(out) == checksums(tmp_path / "other")
    assert_holds(out, {"uni": {"": features}})


def test_a_finished_conversion_is_not_repeated(tmp_path, interrupted):
    source, out, _ = interrupted
    report = sf.convert(source, out)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert sf.convert(source, out) == report
    assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    with pytest.raises(sf.MismatchError, match=r"another dtype \('float16', now 'float32'\)"):
        sf.convert(source, out, dtype="float32")


def test_other_arguments_or_another_source(interrupted):
    source, out, features = interrupted
    before = checksums(out)
    with pytest.raises(sf.MismatchError, match=r"with another dtype \('float16', now 'float32'\).*delete it"):
        sf.convert(source, out, dtype="float32")
    for what, column in {"labels": np.arange(70) % 2, "splits": ["train"] * 70, "groups": ["p"] * 70}.items():
        with pytest.raises(sf.MismatchError, match=f"was written with other {what}; choose another --out"):
            sf.convert(source, out, **{what: column})
    with pytest.raises(sf.MismatchError, match="with other features"):
        sf.convert({"virchow": source}, out)
    np.save(source, features + 1)
    with pytest.raises(sf.MismatchError, match="was written with other features"):
        sf.convert(source, out)
    assert checksums(out) == before


def test_a_lost_part_is_written_again(tmp_path, interrupted):
    source, out, _ = interrupted
    (out / "part-00001.safetensors").unlink()
    sf.convert(source, out)
    sf.convert(source, tmp_path / "other")
    assert checksums(out) == checksums(tmp_path / "other")


def test_files_of_others_are_left_alone(tmp_path):
    np.save(tmp_path / "uni.npy", make_slides()[0]["uni"]["slide-c"])
    (tmp_path / "out").mkdir()
    for name in ("part-00007.safetensors", "part-00008.unfinished", "part-time.txt"):
        (tmp_path / "out" / name).write_text("mine")
    before = checksums(tmp_path / "out")
    for write in (sf.convert, lambda _, out: sf.write_archive(out, {"uni": np.ones((2, 3))})):
        with pytest.raises(sf.ShazamError, match="the directory holds other files"):
            write(tmp_path / "uni.npy", tmp_path / "out")
    assert checksums(tmp_path / "out") == before


def test_a_source_whose_part_was_replaced_is_another_source(tmp_path, interrupted):
    _, _, features = interrupted
    source, out = sf.write_archive(tmp_path / "source", {"uni": features}), tmp_path / "half"
    with DirectoryLock(out):
        conversion._Conversion(conversion.Readable(source, *[None] * 5), out, "float16").parts.claim()
    part = source / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[4096] ^= 1
    (tmp_path / "new").write_bytes(content)
    os.replace(tmp_path / "new", part)
    with pytest.raises(sf.MismatchError, match="was written with other features"):
        sf.convert(source, out)


def test_two_processes_do_not_write_one_archive(interrupted):
    source, out, _ = interrupted
    with DirectoryLock(out), pytest.raises(sf.ShazamError, match="is writing there; wait"):
        sf.convert(source, out)
    sf.convert(source, out)


def test_directories_that_hold_something_else(tmp_path, archive, interrupted):
    source, out, _ = interrupted
    before = checksums(archive.path)
    with pytest.raises(sf.ShazamError, match="holds another archive already"):
        sf.convert(source, archive.path)
    assert checksums(archive.path) == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.tex").write_text("years of work")
    with pytest.raises(sf.ShazamError, match=r"other files \(chapter-1.tex\)"):
        sf.convert(source, tmp_path / "thesis")
    with pytest.raises(sf.ShazamError, match="was written with"):
        sf.write_archive(out, {"uni": np.ones((2, 3), np.float32)})


# Bad input, one test an error


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_feature_that_is_not_finite(tmp_path, small_parts, value, dtype):
    features, coords = make_slides()
    features["virchow"]["slide-c"][33, 5] = value
    for teacher in DIMS:
        for slide in SLIDES:
            write_h5(tmp_path / teacher / f"{slide}.h5", features[teacher][slide], coords[slide])
    message = f"slide 'slide-c': teacher 'virchow', row 64, column 5: the feature is {value}"
    with pytest.raises(sf.NonFiniteError, match=message):
        sf.convert({teacher: tmp_path / teacher for teacher in DIMS}, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists(), "the same call would fail again"


def test_a_feature_beyond_float16(tmp_path, small_parts):
    features = make_slides()[0]["uni"]["slide-c"]
    features[41, 3] = -7e4
    np.save(tmp_path / "uni.npy", features)
    with pytest.raises(
        sf.NonFiniteError, match=r"teacher 'uni', row 41, column 3: -70000.0 overflows float16.*float32"
    ):
        sf.convert(tmp_path / "uni.npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_of_two_teachers_that_differ(tmp_path):
    features, coords = make_slides()
    write_h5(tmp_path / "uni" / "a.h5", features["uni"]["slide-c"], coords["slide-c"], compression="gzip")
    write_h5(
        tmp_path / "virchow" / "a.h5", features["virchow"]["slide-c"][1:], coords["slide-c"][1:], compression="gzip"
    )
    with pytest.raises(sf.MismatchError, match=r"uni/a.h5 \('uni'\) has 70, .*virchow/a.h5 \('virchow'\) has 69"):
        sf.convert({teacher: tmp_path / teacher for teacher in DIMS}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Payload:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("content", [np.ones((3, 4), np.float32), Payload()])
def test_pickled_objects_are_refused(tmp_path, monkeypatch, legacy, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "uni.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(sf.ArchiveError, match=r"uni.pt: .*refused.*save"):
        sf.convert("uni.pt", "out")
    with open("plain.pt", "wb") as file:
        pickle.dump(content, file)
    with pytest.raises(sf.ArchiveError, match="a plain pickle; refused"):
        sf.convert("plain.pt", "out")
    np.savez("uni.npz", features=np.array([content], dtype=object))
    with pytest.raises(sf.ArchiveError, match=r"uni.npz: .*allow_pickle=False"):
        sf.convert("uni.npz", "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain.pt", "uni.npz", "uni.pt"]


def test_chunks_that_were_never_written(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "uni.h5", "w") as file:
        features = file.create_dataset("features", (64, 12), "f4", chunks=(16, 12), compression="gzip")
        features[:32] = 1.0
    with pytest.raises(sf.ArchiveError, match=r"uni.h5: 2 of 4 chunks of '/features' written: extract it again"):
        sf.convert(tmp_path / "uni.h5", tmp_path / "out")


def test_files_that_are_damaged(tmp_path):
    x = make_slides()[0]["uni"]["slide-c"]
    np.savez_compressed(tmp_path / "uni.npz", features=x)
    content = bytearray((tmp_path / "uni.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "uni.npz").write_bytes(content)
    (tmp_path / "uni.txt").write_text("[[1.0, 2.0], [3.0]]")
    (tmp_path / "words.txt").write_text('"features"')
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "two.npz", a=x, b=x)
    np.savez(tmp_path / "integers.npz", x=x.astype(int))
    np.savez(tmp_path / "flat.npz", x=x[0])
    np.savez(tmp_path / "labels.npz", features=x, labels=np.zeros(3, int))
    np.savez(tmp_path / "coords.npz", features=x, coords=np.zeros((70, 1)))
    for name, message in [
        ("uni.npz", "cannot be read"),
        ("uni.txt", "cannot be read: .*inhomogeneous"),
        ("words.txt", "a JSON list of features"),
        ("empty.npz", "cannot be read"),
        ("two.npz", "an array called one of features.* expected, found a, b"),
        ("integers.npz", r"features are int64 \[70, 12\]; floating-point numbers"),
        ("flat.npz", r"features are float32 \[12\]; "),
        ("labels.npz", r"labels of shape \[3\] for 70 rows"),
        ("coords.npz", r"coords are float64 \[70, 1\] for 70 rows"),
        ("nothing", "no such file"),
    ]:
        with pytest.raises(sf.ArchiveError, match=f"{name}: {message}"):
            sf.convert(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("origin,embeddings,target\na.png,a.pt,1", "no column 'split'; found origin, embeddings, target"),
        ("origin,embeddings,target,split\na.png,a.pt,1,train\na.png,a.pt,1,val", "'a.png' is listed twice"),
        ("origin,embeddings,target,split\na.png,b.pt,1,train", "b.pt: cannot be read: .*No such file"),
        ("origin,embeddings,target,split\na.png,a.pt,1,holdout", "unknown split 'holdout'"),
    ],
)
def test_manifests_of_eva_that_do_not_fit(tmp_path, text, message):
    write_eva(tmp_path / "uni", {"a.png": np.ones((1, 3), np.float32)}, {"a.png": 1}, {"a.png": "train"})
    (tmp_path / "uni" / "manifest.csv").write_text(text)
    with pytest.raises(sf.ShazamError, match=message):
        sf.convert(tmp_path / "uni", tmp_path / "out")


def test_a_file_that_changes_after_it_was_opened(tmp_path, monkeypatch):
    x = make_slides()[0]["uni"]["slide-c"]
    np.savez(tmp_path / "uni.npz", features=x)
    run = conversion._Conversion.run
    monkeypatch.setattr(conversion._Conversion, "run", partial_after(run, tmp_path / "uni.npz", x[:50]))
    with pytest.raises(sf.ArchiveError, match=r"uni.npz: rows 0 to 70 are no longer there"):
        sf.convert(tmp_path / "uni.npz", tmp_path / "out")


def test_positions_that_archives_cannot_hold(tmp_path):
    """Positions beyond 32 bits are refused; cut to 32 bits they would be other positions."""
    coords = np.array([[0, 0], [256, 2**40]])
    np.savez(tmp_path / "uni.npz", features=np.ones((2, 4), np.float32), coords=coords)
    with pytest.raises(
        sf.MismatchError, match=r"out: coords: row 1: -2147483648 to 2147483647 .*, found 1099511627776"
    ):
        sf.convert(tmp_path / "uni.npz", tmp_path / "out")
    assert not list((tmp_path / "out").glob("part-*"))


def partial_after(call, file, features):
    def wrapped(*arguments):
        np.savez(file, features=features)
        return call(*arguments)

    return wrapped


def test_positions_that_are_no_numbers_are_unknown(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "uni" / "a.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((3, 2), np.float32)
        file["coords"] = np.array([[0, 0], [np.nan, 5], [256, np.inf]])
    sf.convert(tmp_path / "uni", tmp_path / "out")
    assert sf.open(tmp_path / "out").coords.tolist() == [[0, 0], [-1, -1], [-1, -1]]


def test_positions_that_are_not_whole_are_refused(tmp_path):
    """Rounded, they would be other positions; what float32 makes of whole ones is whole."""
    coords = np.array([[0, 0], [0.1 * 2560, 5], [512, 7]], np.float32)
    for slide, shift in (("a", 0.0), ("b", 0.25)):
        coords[2, 1] += shift
        np.savez(tmp_path / f"{slide}.npz", features=np.ones((3, 4), np.float32), coords=coords)
    with pytest.raises(sf.MismatchError, match=r"row 5 \(slide 'b', file .*\(512.0, 7.25\)\): its position is not"):
        sf.convert(tmp_path, tmp_path.parent / "out")
    assert not (tmp_path.parent / "out").exists()
    sf.convert(tmp_path, tmp_path.parent / "one", slides=["a"])
    assert sf.open(tmp_path.parent / "one").coords.tolist() == [[0, 0], [256, 5], [512, 7]]


def test_an_archive_inside_its_own_source_is_refused(tmp_path):
    (tmp_path / "uni").mkdir()
    np.save(tmp_path / "uni" / "a.npy", np.ones((3, 2), np.float32))
    for source in (tmp_path / "uni", {"uni": tmp_path / "uni"}):
        with pytest.raises(sf.MismatchError, match="lies inside its own source"):
            sf.convert(source, tmp_path / "uni" / "out")
    assert [file.name for file in (tmp_path / "uni").iterdir()] == ["a.npy"]
