"""The native archive as a user writes, opens and reads it."""

import json
import os
import pickle
import resource
import shutil

import numpy as np
import processes
import pytest
from safetensors.numpy import load_file
from synthetic import CLASSES, TEACHERS, make_patches

import shazam_fast as sf


def side_by_side(patches, dtype=np.float16):
    return np.concatenate([f.astype(dtype) for f in patches["features"].values()], axis=1)


def test_what_was_written_comes_back(archive, patches):
    assert len(archive) == archive.n_rows == 300
    assert archive.teachers == TEACHERS
    assert archive.classes == CLASSES
    np.testing.assert_array_equal(archive.labels, patches["labels"])
    np.testing.assert_array_equal(archive.coords, patches["coords"])
    assert [archive.slides[i] for i in archive.slide_index] == patches["slides"].tolist()
    assert [archive.groups[i] for i in archive.group_index] == patches["groups"].tolist()
    np.testing.assert_array_equal(archive.split("val"), np.flatnonzero(patches["splits"] == "val"))
    assert archive.split("none").size == 0
    archive.verify()


def test_gather_takes_any_rows_in_any_order(archive, patches):
    rows = [299, 0, 7, 7, 150]
    expected = side_by_side(patches)[rows]
    np.testing.assert_array_equal(archive.gather(rows), expected.astype(np.float32))
    raw = np.full((5, archive.width), np.nan, dtype=np.float16)
    np.testing.assert_array_equal(archive.gather(rows, out=raw), expected)
    assert archive.gather([]).shape == (0, archive.width)
    virchow = archive.gather(rows)[:, archive.columns_of("virchow")]
    np.testing.assert_array_equal(virchow, patches["features"]["virchow"][rows].astype(np.float16).astype(np.float32))


def test_batches_cover_all_rows_once(archive, patches):
    batches = list(archive.batches(batch_size=64))
    assert [len(b.rows) for b in batches] == [64, 64, 64, 64, 44]
    np.testing.assert_array_equal(np.concatenate([b.rows for b in batches]), np.arange(300))
    np.testing.assert_array_equal(
        np.concatenate([b.features for b in batches]), side_by_side(patches).astype(np.float32)
    )
    chosen = next(archive.batches(archive.split("test"), batch_size=3))
    np.testing.assert_array_equal(chosen.labels, patches["labels"][chosen.rows])


def test_streams_are_batches_gathered_ahead(archive, patches):
    rows = np.random.default_rng(0).permutation(300)
    whole = side_by_side(patches).astype(np.float32)
    seen = []
    for batch in archive.stream(rows, batch_size=32):
        np.testing.assert_array_equal(batch.features, whole[batch.rows])
        np.testing.assert_array_equal(batch.labels, patches["labels"][batch.rows])
        seen.append(batch.rows)
    np.testing.assert_array_equal(np.concatenate(seen), rows)
    for batch in archive.stream(batch_size=7):
        assert batch.rows[0] < 14
        if batch.rows[0] == 7:
            break  # leaving early stops the background thread
    with pytest.raises(sf.ArchiveError, match="row 300"):
        list(archive.stream(np.array([0, 300])))


def test_float32_archives_keep_every_bit(tmp_path, patches):
    archive = sf.open(sf.write_archive(tmp_path / "a", **patches, dtype="float32"))
    np.testing.assert_array_equal(archive.gather(np.arange(300)), side_by_side(patches, np.float32))


def test_columns_are_optional(tmp_path):
    archive = sf.open(sf.write_archive(tmp_path / "a", {"uni": np.ones((3, 4), np.float16)}))
    assert archive.labels.tolist() == [-1, -1, -1]
    assert archive.splits.tolist() == [255, 255, 255]
    assert archive.coords.tolist() == [[-1, -1]] * 3
    assert archive.slide_index.tolist() == archive.group_index.tolist() == [-1, -1, -1]
    assert archive.classes == archive.slides == ()


def test_labels_given_as_names(tmp_path):
    features = {"uni": np.ones((3, 4), np.float16)}
    archive = sf.open(sf.write_archive(tmp_path / "a", features, labels=["tumour", "normal", "tumour"]))
    assert archive.classes == ("normal", "tumour")
    assert archive.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("chunk_rows", [1, 7, 300])
def test_chunks_from_an_iterator_and_many_parts(tmp_path, patches, chunk_rows):
    columns = {k: v for k, v in patches.items() if k not in ("features", "classes")}
    path = tmp_path / "a"
    with sf.ArchiveWriter(path, TEACHERS, classes=CLASSES, part_bytes=39 * 2 * 100) as writer:
        for start in range(0, 300, chunk_rows):
            here = slice(start, start + chunk_rows)
            chunk = {name: f[here] for name, f in patches["features"].items()}
            writer.append(chunk, **{name: column[here] for name, column in columns.items()})
    archive = sf.open(path)
    assert sorted(p.name for p in path.iterdir())[1:] == [f"part-0000{i}.safetensors" for i in range(3)]
    np.testing.assert_array_equal(archive.gather(np.arange(300)), side_by_side(patches).astype(np.float32))
    np.testing.assert_array_equal(archive.labels, patches["labels"])
    assert [archive.slides[i] for i in archive.slide_index] == patches["slides"].tolist()
    archive.verify()

    chunks = ({name: f[i : i + 9] for name, f in patches["features"].items()} for i in range(0, 300, 9))
    again = sf.open(sf.write_archive(tmp_path / "b", chunks, labels=patches["labels"]))
    np.testing.assert_array_equal(again.gather([299]), archive.gather([299]))


def test_parts_are_plain_safetensors_on_page_boundaries(archive, patches):
    part = archive.path / "part-00000.safetensors"
    assert 8 + int.from_bytes(part.read_bytes()[:8], "little") == 4096
    tensors = load_file(part)
    np.testing.assert_array_equal(tensors["features"], side_by_side(patches))
    np.testing.assert_array_equal(tensors["label"], patches["labels"])


def test_an_odd_number_of_bytes_leaves_the_parts_readable(tmp_path):
    path = sf.write_archive(tmp_path / "a", {"uni": np.ones((3, 3), np.float16)}, labels=[0, 1, 1])
    assert load_file(path / "part-00000.safetensors")["label"].tolist() == [0, 1, 1]


def test_a_large_archive_is_written_in_little_memory(tmp_path):
    """300 MB through a memory map, in a process that takes less than a third of that for it."""
    script = """
import numpy as np, sys
import shazam_fast as sf
rows, dim = 30_000, 4864
source = np.memmap(sys.argv[1] + "/source.npy", dtype=np.float16, mode="w+", shape=(rows, dim))
before = int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])
sf.write_archive(sys.argv[1] + "/a", {"uni": source[:, :1024], "rest": source[:, 1024:]})
after = int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])
archive = sf.open(sys.argv[1] + "/a")
assert archive.n_rows == rows
print(after - before)
"""
    run = processes.run(script, tmp_path, check=True)
    assert int(run.stdout) < 100_000  # KiB


# Bad input, one test an error.


def write(tmp_path, **changes):
    patches = make_patches(rows=20)
    return sf.write_archive(tmp_path / "bad", **{**patches, **changes})


def test_rows_of_two_teachers_that_do_not_match(tmp_path, patches):
    features = patches["features"] | {"virchow": patches["features"]["virchow"][:299]}
    with pytest.raises(sf.MismatchError, match=r"'uni' has 300, 'virchow' has 299"):
        write(tmp_path, features=features)
    assert not (tmp_path / "bad").exists()


def test_columns_of_another_length(tmp_path):
    with pytest.raises(sf.MismatchError, match="labels has 19 entries for 20 rows"):
        write(tmp_path, labels=np.zeros(19, int))
    with pytest.raises(sf.MismatchError, match="coords has 21 entries for 20 rows"):
        write(tmp_path, coords=np.zeros((21, 2), int))
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("label", [3, -2, 2**40])
def test_labels_out_of_range(tmp_path, label):
    labels = make_patches(rows=20)["labels"]
    labels[4] = label
    with pytest.raises(sf.MismatchError, match=f"labels: row 4: label {label} found, -1 .unknown. to 2 allowed"):
        write(tmp_path, labels=labels)


def test_a_label_that_is_no_class(tmp_path):
    with pytest.raises(sf.MismatchError, match=r"'lymphoma'.*not among the classes"):
        write(tmp_path, labels=["lymphoma"] * 20)


def test_an_unknown_split(tmp_path):
    with pytest.raises(sf.MismatchError, match="row 0: unknown split 'holdout'; use train, val, test or none"):
        write(tmp_path, splits=["holdout"] * 20)
    with pytest.raises(sf.MismatchError, match="no split is called 'training'"):
        sf.open(write(tmp_path)).split("training")


def test_float_coords_are_not_cut_off(tmp_path):
    with pytest.raises(sf.MismatchError, match="coords: integers expected, found float64"):
        write(tmp_path, coords=np.full((20, 2), 0.5))
    with pytest.raises(sf.MismatchError, match="-2147483648 to 2147483647 expected"):
        write(tmp_path, coords=np.full((20, 2), 2**40))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_not_finite(tmp_path, value):
    features = make_patches(rows=20)["features"]
    features["virchow"][13, 5] = value
    with pytest.raises(sf.NonFiniteError, match=f"teacher 'virchow', row 13, column 5: the feature is {value}"):
        write(tmp_path, features=features)
    assert not (tmp_path / "bad").exists()


def test_a_feature_too_large_for_float16(tmp_path):
    features = make_patches(rows=20)["features"]
    features["uni"][2, 0] = 70000.0
    with pytest.raises(sf.NonFiniteError, match=r"teacher 'uni', row 2, column 0: 70000.0 overflows float16.*float32"):
        write(tmp_path, features=features)
    assert sf.open(write(tmp_path, features=features, dtype="float32")).gather([2])[0, 0] == 70000.0


def test_an_empty_archive(tmp_path):
    for features in ({}, iter([]), {"uni": np.ones((0, 4), np.float16)}):
        with pytest.raises(sf.ShazamError, match="at least one"):
            sf.write_archive(tmp_path / "empty", features)
        assert not (tmp_path / "empty").exists()


def test_chunks_with_other_teachers(tmp_path):
    chunks = [{"uni": np.ones((2, 4), np.float16)}, {"virchow": np.ones((2, 4), np.float16)}]
    with pytest.raises(sf.MismatchError, match=r"missing \['uni'\], unexpected \['virchow'\]"):
        sf.write_archive(tmp_path / "a", chunks)
    chunks[1] = {"uni": np.ones((2, 5), np.float16)}
    with pytest.raises(sf.MismatchError, match="teacher 'uni': 4 columns expected, found 5"):
        sf.write_archive(tmp_path / "a", chunks)


def test_an_archive_is_never_overwritten(archive, patches):
    with pytest.raises(sf.ShazamError, match=r"archive\.json is there already"):
        sf.write_archive(archive.path, **patches)
    archive.verify()
    other = archive.path.parent / "thesis"
    other.mkdir()
    (other / "chapter-1.tex").write_text("years of work")
    with pytest.raises(sf.ShazamError, match=r"other files \(chapter-1.tex\)"):
        sf.write_archive(other, **patches)
    assert (other / "chapter-1.tex").read_text() == "years of work"


def test_an_unknown_dtype(tmp_path, archive):
    with pytest.raises(sf.ShazamError, match="'float16' or 'float32', not 'float64'"):
        write(tmp_path, dtype="float64")
    edit_manifest(archive, dtype="float8")
    with pytest.raises(sf.ArchiveError, match=r"Invalid enum value 'float8' - at `\$.dtype`"):
        sf.open(archive.path)


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """A limit on file size fails writes in the same place as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(sf.ShazamError, match="writing stopped after 0 rows"):
            sf.write_archive(tmp_path / "a", {"uni": np.ones((1000, 64), np.float16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "a").exists()


def test_missing_archives(tmp_path, archive):
    with pytest.raises(sf.ArchiveError, match="no such file or directory"):
        sf.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(sf.ArchiveError, match="none of its files could be features"):
        sf.open(tmp_path / "empty")
    (archive.path / "archive.json").unlink()
    with pytest.raises(sf.ArchiveError, match="its writing was interrupted"):
        sf.open(archive.path)


KILLED = """
import os, signal, sys, numpy as np, shazam_fast as sf
writer = sf.ArchiveWriter(sys.argv[1], {"uni": 4}, part_bytes=800)
for _ in range(5):
    writer.append({"uni": np.ones((70, 4))})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writing_is_taken_over(tmp_path, patches):
    processes.run(KILLED, tmp_path / "a")
    left = [path.name for path in (tmp_path / "a").iterdir()]
    assert len(left) > 6, "parts, their records, one half-written, the claim and the lock"
    with pytest.raises(sf.ArchiveError, match="its writing was interrupted"):
        sf.open(tmp_path / "a")
    sf.open(sf.write_archive(tmp_path / "a", **patches)).verify()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["archive.json", "part-00000.safetensors"]


def edit_manifest(archive, **changes):
    manifest = archive.path / "archive.json"
    content = {**json.loads(manifest.read_text()), **changes}
    del content["document_xxh3"]
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "zip"}, "'shazam_fast archive' expected, but it holds 'zip'"),
        ({"version": 2}, "version 2.*update"),
        ({"rows": 7}, "7 rows stated, the parts hold 300"),
        ({"teachers": []}, r"length >= 1 - at `\$.teachers`"),
        ({"teachers": [{"name": "uni", "dim": 38}]}, r"'features' is float16 \[300, 39\].*\[300, 38\]"),
        ({"teachers": [{"name": "uni"}]}, "corrupt document.*missing required field `dim`"),
        (
            {"parts": [{"file": "part-00009.safetensors", "rows": 300, "bytes": 1, "xxh3": "0" * 16}]},
            "part-00009.*file not found",
        ),
    ],
)
def test_a_manifest_that_lies(archive, changes, message):
    edit_manifest(archive, **changes)
    with pytest.raises(sf.ArchiveError, match=message):
        sf.open(archive.path)


def test_a_manifest_that_is_no_json(archive):
    (archive.path / "archive.json").write_text("{")
    with pytest.raises(sf.ArchiveError, match="corrupt document"):
        sf.open(archive.path)


def test_truncated_and_overlong_parts(archive):
    part = archive.path / "part-00000.safetensors"
    content = part.read_bytes()
    for damaged, message in [
        (content[:-1], "truncated file"),
        (content + b"x", "overlong file"),
        (content[:5], "truncated or not"),
        (b"\xff" * 100, "header claims"),
        (content[:8] + b"[" + content[9:], "corrupt safetensors header"),
        (content.replace(b'"F16"', b'"F13"'), "unknown dtype 'F13'"),
        (content.replace(b"[300, 39]", b"[301, 39]"), "needs 23478 bytes"),
        (content.replace(b"[300, 39]", b"[-10, 3] "), "corrupt header entry of tensor"),
        (content.replace(b'"label"', b'"tabel"'), "'label' is missing"),
        (content.replace(b"[300, 39]", b"[300,9e3]"), "corrupt header entry of tensor"),
    ]:
        part.write_bytes(damaged)
        with pytest.raises(sf.ArchiveError, match=message):
            sf.open(archive.path)
    header = json.loads(content[8:4096])
    for shape, message in [
        ([2**63, 0], "corrupt header entry of tensor"),
        ([0] * 65, "corrupt header entry of tensor"),
    ]:
        header["label"]["shape"] = shape
        part.write_bytes(content[:8] + json.dumps(header).encode().ljust(4088) + content[4096:])
        with pytest.raises(sf.ArchiveError, match=message):
            sf.open(archive.path)
    part.write_bytes((5000).to_bytes(8, "little") + b"9" * 5000)
    with pytest.raises(sf.ArchiveError, match="corrupt safetensors header"):
        sf.open(archive.path)
    part.unlink()
    part.mkdir()
    with pytest.raises(sf.ArchiveError, match="directory, pipe or device"):
        sf.open(archive.path)


def test_flipped_bits_fail_the_checksum(archive):
    part = archive.path / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[5000] ^= 1
    part.write_bytes(content)
    with pytest.raises(sf.ArchiveError, match=r"part-00000.safetensors: checksum mismatch"):
        sf.open(archive.path).verify()


def test_a_stored_nan_is_found_by_verify(archive):
    part = archive.path / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    offset = 4096 + (17 * 39 + 12) * 2  # row 17, first column of phikon-v2
    content[offset : offset + 2] = np.float16(np.nan).tobytes()
    part.write_bytes(content)
    from shazam_fast.runtime.files import file_checksum

    manifest = json.loads((archive.path / "archive.json").read_text())
    manifest["parts"][0]["xxh3"] = file_checksum(part)
    edit_manifest(archive, parts=manifest["parts"])
    with pytest.raises(sf.NonFiniteError, match="teacher 'phikon-v2', row 17"):
        sf.open(archive.path).verify()


def test_a_label_on_disk_that_is_out_of_range(archive):
    edit_manifest(archive, classes=["normal"])
    with pytest.raises(sf.ArchiveError, match="is out of range: the archive has 1 classes"):
        sf.open(archive.path).labels  # noqa: B018 - reading is the test


def test_rows_that_do_not_exist(archive):
    for rows in ([300], [-1], [0, 2**62]):
        with pytest.raises(sf.ArchiveError, match="row"):
            archive.gather(rows)
    with pytest.raises(sf.MismatchError, match=r"no teacher 'titan'; it has uni, phikon-v2, virchow"):
        archive.columns_of("titan")


def test_a_part_that_shrinks_while_it_is_open(archive):
    archive.gather([0])
    with (archive.path / "part-00000.safetensors").open("r+b") as part:
        part.truncate(4096)
    with pytest.raises(sf.ArchiveError, match=r"part-00000.safetensors"):
        archive.gather([299])
    with pytest.raises(sf.ArchiveError, match="shrank"):
        archive.labels  # noqa: B018 - reading is the test


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("again", [False, True])
def test_files_written_between_opening_and_reading_are_refused(tmp_path, index, again):
    """Their layout was read before: their bytes would be taken for rows that they are not."""
    (folder := tmp_path / "uni").mkdir()
    for name in ("s1", "s2"):
        np.save(folder / f"{name}.npy", np.ones((100, 32), np.float32))
        os.utime(folder / f"{name}.npy", (1e9, 1e9))
    for _ in range(1 + again):  # the second time from the index
        opened = sf.open({"uni": folder}, index=index)
    picked = sf.open({"uni": folder}, slides=["s2"], index=index)
    np.save(folder / "s2.npy", np.ones((200, 16), np.float32))
    assert opened.gather([0]).all()
    for archive, row in ((opened, 100), (picked, 0)):
        with pytest.raises(sf.ArchiveError, match=r"s2.npy: was written or replaced after it was first opened"):
            archive.gather([row])


def test_rows_that_were_read_ahead_are_the_same(archive):
    archive.read_ahead(np.arange(300))
    archive.read_ahead(np.array([7, 3, 299]))
    archive.read_ahead(np.arange(0))
    np.testing.assert_array_equal(archive.gather([7, 3]), archive.gather(np.arange(300))[[7, 3]])
    with pytest.raises(sf.ArchiveError, match="row 300"):
        archive.read_ahead(np.array([300]))


def test_what_the_page_cache_holds_is_not_read_past_it(archive):
    out = np.zeros((300, archive.width), np.float32)
    archive.gather(np.arange(300))
    assert not archive.gather_past_cache(np.arange(300), out)
    assert not out.any()
    with pytest.raises(sf.ArchiveError, match="row 300"):
        archive.gather_past_cache(np.array([300]), out[:1])


def test_teachers_of_which_one_is_in_the_page_cache(tmp_path):
    features = {name: np.random.default_rng(0).normal(size=(3000, 200)).astype("f2") for name in ("uni", "conch")}
    for name, values in features.items():
        np.save(tmp_path / f"{name}.npy", values)
    archive = sf.open({name: tmp_path / f"{name}.npy" for name in features})
    with open(tmp_path / "conch.npy", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rows, out = np.arange(2, 2900), np.zeros((2898, 400), np.float16)
    assert archive.gather_past_cache(rows, out) or not out.any()  # False where the file system keeps it
    if out.any():
        np.testing.assert_array_equal(out, np.concatenate(list(features.values()), axis=1)[rows])


def test_the_second_writer_is_refused_and_leaves_the_first_alone(tmp_path):
    features = {"uni": np.ones((50, 4))}
    with sf.ArchiveWriter(tmp_path / "a", {"uni": 4}, part_bytes=100) as first:
        first.append(features)
        with pytest.raises(sf.ShazamError, match=r"process \d+ on .* is writing there"):
            sf.ArchiveWriter(tmp_path / "a", {"uni": 4})
        first.append(features)
    sf.open(tmp_path / "a").verify()
    assert len(sf.open(tmp_path / "a")) == 100
    with pytest.raises(sf.ShazamError, match=r"archive\.json is there already"):
        sf.ArchiveWriter(tmp_path / "a", {"uni": 4})
    assert not list((tmp_path / "a").glob("*.lock"))


def test_the_fingerprint_is_of_content(tmp_path, patches, monkeypatch):
    paths = [sf.write_archive(tmp_path / name, **patches) for name in ("a", "b")]
    (tmp_path / "link").symlink_to(paths[0])
    monkeypatch.chdir(tmp_path)
    expected = sf.open(paths[0]).fingerprint
    assert sf.open(paths[1]).fingerprint == sf.open("a").fingerprint == sf.open("link").fingerprint == expected
    splits = np.full(300, "train")
    changed = sf.open("a", labels=np.arange(300) % 2, splits=splits).fingerprint
    assert {what for what in expected if changed[what] != expected[what]} == {"labels", "splits"}


@pytest.mark.parametrize("where", ["file", "below", "closed"])
def test_places_that_cannot_be_written(tmp_path, where):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "closed").mkdir(mode=0o500)
    out = {"file": tmp_path / "file", "below": tmp_path / "file" / "a", "closed": tmp_path / "closed" / "a"}[where]
    if where == "closed" and os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("root may write everywhere")
    for write in (lambda: sf.write_archive(out, {"uni": np.ones((2, 3))}), lambda: sf.convert("absent", out)):
        with pytest.raises(sf.ShazamError, match="choose another --out"):
            write()
    assert (tmp_path / "file").read_text() == "mine"


def test_features_of_every_form(tmp_path):
    torch = pytest.importorskip("torch")
    rows = [[1.0, 2.5, -3.0], [4.0, 5.0, 6.0]]
    for i, block in enumerate([rows, np.array(rows), torch.tensor(rows), torch.tensor(rows).bfloat16()]):
        archive = sf.open(sf.write_archive(tmp_path / str(i), {"uni": block}))
        np.testing.assert_array_equal(archive.gather([0, 1]), rows)
    for block, message in [([["a"]], "numbers expected, found <U1"), ([[1.0], [1.0, 2.0]], "rows, dim")]:
        with pytest.raises(sf.MismatchError, match=message):
            sf.write_archive(tmp_path / "bad", {"uni": block})
        assert not (tmp_path / "bad").exists()


def test_an_archive_written_anew_is_not_read_under_its_old_labels(tmp_path, patches):
    path = sf.write_archive(tmp_path / "a", **patches)
    before = sf.open(path)
    shutil.rmtree(path)
    sf.write_archive(path, **{**patches, "features": {name: x + 1 for name, x in patches["features"].items()}})
    reads = (
        lambda archive: archive.gather([0]),
        lambda archive: archive.labels,
        lambda archive: archive.fingerprint,
        lambda archive: next(archive.stream()),
        lambda archive: archive.verify(),
        lambda archive: pickle.loads(pickle.dumps(archive)).gather([0]),
    )
    for read in reads:
        with pytest.raises(sf.ArchiveError, match="written anew after it was opened") as caught:
            read(before)
        assert caught.value.kind == "changed"


def test_a_moved_archive_says_so(tmp_path, patches):
    archive = sf.open(sf.write_archive(tmp_path / "a", **patches))
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(sf.ArchiveError, match="cannot be read"):
        archive.verify()


def test_coords_of_a_frame_are_taken_by_name(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"y": [1, 2], "x": [30, 40]})
    features = {"uni": np.ones((2, 3))}
    archive = sf.open(sf.write_archive(tmp_path / "a", features, coords=frame))
    assert archive.coords.tolist() == [[30, 1], [40, 2]]
    with sf.ArchiveWriter(tmp_path / "b", {"uni": 3}) as writer:
        writer.append(features, coords=frame)
    assert sf.open(tmp_path / "b").coords.tolist() == [[30, 1], [40, 2]]
    for other in (frame.rename(columns={"x": "col"}), frame.assign(level=0), pandas.DataFrame([[1, 2], [3, 4]])):
        with pytest.raises(sf.MismatchError, match="columns x and y expected"):
            sf.write_archive(tmp_path / "bad", features, coords=other)
    with pytest.raises(sf.MismatchError, match="coords: row 1 is masked"):
        sf.write_archive(tmp_path / "bad", features, coords=np.ma.array([[1, 2], [3, 4]], mask=[[0, 0], [0, 1]]))


def test_masked_features_are_refused(tmp_path):
    masked = np.ma.array(np.ones((4, 3)), mask=np.zeros((4, 3)))
    sf.write_archive(tmp_path / "whole", {"uni": masked})
    masked[2, 1] = np.ma.masked
    for block in (masked, list(masked)):
        with pytest.raises(sf.NonFiniteError, match="teacher 'uni', row 2, column 1: the feature is masked"):
            sf.write_archive(tmp_path / "bad", {"uni": block})
    with pytest.raises(sf.NonFiniteError, match="teacher 'uni', row 6, column 1"):
        sf.write_archive(tmp_path / "bad", iter([{"uni": np.ones((4, 3))}, {"uni": masked}]))


def test_rows_that_float16_turns_into_zeros_are_refused(tmp_path):
    features = np.ones((4, 3), np.float32)
    features[1] = 0  # which is what it is
    features[2] = [0, 2e-8, -1e-8]
    with pytest.raises(sf.NonFiniteError, match=r"teacher 'uni', row 2: all features become 0 in float16.*float32"):
        sf.write_archive(tmp_path / "bad", {"uni": features})
    archive = sf.write_archive(tmp_path / "a", {"uni": features}, dtype="float32")
    np.testing.assert_array_equal(sf.open(archive).gather([2])[0], features[2])
    with pytest.raises(sf.NonFiniteError, match=r"teacher 'uni', row 2: all features become 0 in float16"):
        sf.convert(archive, tmp_path / "bad")
    with pytest.raises(sf.NonFiniteError, match=r"become 0 in float32.*scale"):
        sf.write_archive(tmp_path / "bad", {"uni": np.full((1, 2), 1e-60)}, dtype="float32")


@pytest.mark.parametrize("name", ["", " ", 1, None, "a\0b"])
def test_teachers_need_names(tmp_path, name):
    with pytest.raises(sf.ShazamError, match="teachers: a name expected"):
        sf.write_archive(tmp_path / "a", {name: np.ones((2, 3))})
    with pytest.raises(sf.ShazamError, match="teachers: a name expected"):
        sf.ArchiveWriter(tmp_path / "a", {name: 3})
    assert not (tmp_path / "a").exists()


def test_what_an_archive_keeps_cannot_be_written_to(tmp_path, trained):
    """A user who changes an array that was handed out would change all later results."""
    path = sf.write_archive(tmp_path / "a", **make_patches(rows=20))
    given = np.arange(20) % 2
    scores = sf.score(*trained)
    labelled = sf.open(path, labels=given)
    for archive in (sf.open(path), labelled, pickle.loads(pickle.dumps(labelled))):
        arrays = [getattr(archive, n) for n in ("labels", "splits", "slide_index", "group_index", "coords")]
        for array in (*arrays, archive.column("label", 2, 9)):
            with pytest.raises(ValueError, match="read-only"):
                array[:] = 0
    for name in ("rows", "coords", "prediction", "probabilities", "shares"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(scores, name)[:] = 0
    given[:] = 1
    assert sf.open(path, labels=np.arange(20) % 2).labels.tolist() == archive.labels.tolist()


def test_other_splits_are_checked_and_copied(tmp_path):
    archive = sf.open(sf.write_archive(tmp_path / "a", **make_patches(rows=20)))
    for wrong in (np.zeros(19, np.uint8), np.zeros(20), np.full(20, 300)):
        with pytest.raises(sf.MismatchError, match="split: "):
            archive.with_splits(wrong)
    splits = np.zeros(20, np.uint8)
    other = archive.with_splits(splits)
    splits[:] = 1
    assert len(other.split("train")) == 20


def test_arguments_of_reading_are_checked(tmp_path):
    archive = sf.open(sf.write_archive(tmp_path / "a", **make_patches(rows=20)))
    assert archive.split("train", 0, 0).size == 0
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(sf.ShazamError, match="threads: a whole number from 1 expected"):
            archive.gather([0], threads=wrong)
        for read in (archive.batches, archive.stream):
            with pytest.raises(sf.ShazamError, match="batch_size: a whole number from 1 expected"):
                next(read(batch_size=wrong))


@pytest.mark.parametrize("name", ["slides", "groups"])
def test_names_that_differ_in_blanks_alone_over_several_chunks(tmp_path, name):
    chunk = {"u": np.ones((1, 2))}
    with sf.ArchiveWriter(tmp_path / "a", {"u": 2}) as writer:
        for given in (["a"], np.array(["a"])):
            writer.append(chunk, **{name: given})
        with pytest.raises(sf.MismatchError, match=f"{name}: 'a' and 'a ' differ in the blanks around them alone"):
            writer.append(chunk, **{name: ["a "]})
    assert getattr(sf.open(tmp_path / "a"), name) == ("a",)


def test_a_teacher_chosen_twice(tmp_path):
    path = sf.write_archive(tmp_path / "a", **make_patches(rows=20))
    with pytest.raises(sf.MismatchError, match=r"teachers: each name once expected, found \['uni', 'uni'\]"):
        sf.open(path, teachers=["uni", "uni"])
