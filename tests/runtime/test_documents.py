"""Documents that are read back: limits, kinds of errors, and mutated documents."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from fuzzing import EXAMPLES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import make_patches

import shazam_fast as sf
from shazam_fast.formats.native import read_manifest
from shazam_fast.runtime.documents import Count, Json, Name, Ratio, Record, encode_document, read_document
from shazam_fast.runtime.jobs.part_directory import Claim, PartRecord
from shazam_fast.scoring.manifest import read_manifest as open_manifest
from shazam_fast.student.saving.files import read_card


class Note(Record, frozen=True, kw_only=True):
    format: str = "note"
    version: int = 1
    name: Name
    count: Count = 0
    share: Ratio | None = None
    more: Json = None


def test_a_document_is_read_as_it_was_written(tmp_path):
    note = Note(name="ünï", count=2**53 - 1, share=0.1, more={"a": [1, None, {"b": True}]})
    (tmp_path / "note").write_bytes(encode_document(note))
    assert read_document(tmp_path / "note", Note, format="note") == note
    assert json.loads((tmp_path / "note").read_bytes())["name"] == "ünï", "it is JSON for others too"


def test_what_is_not_finite_is_null_and_pythons_nan_is_read(tmp_path):
    (tmp_path / "note").write_bytes(encode_document(Note(name="a", share=float("nan"))))
    assert read_document(tmp_path / "note", Note).share is None
    (tmp_path / "note").write_text('{"name": "NaN", "share": NaN, "more": [-Infinity]}')
    assert read_document(tmp_path / "note", Note) == Note(name="NaN", more=[None])


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", "corrupt", "corrupt document"),
        (b"[1]", "corrupt", "corrupt document"),
        (b'{"format": "note", "version": 1}', "corrupt", "missing required field `name`"),
        (b'{"format": "note", "version": 1, "name": 3}', "corrupt", r"Expected `str`, got `int` - at `\$.name`"),
        (b'{"format": "note", "version": 1, "name": "\xff"}', "corrupt", "corrupt document"),
        (b'{"format": "note", "version": 1, "name": "a", "count": -1}', "corrupt", "`int` >= 0"),
        (b'{"format": "note", "version": 1, "name": "a", "count": 1%s}' % (b"0" * 5000), "corrupt", "out of range"),
        (b'{"format": "note", "version": 1, "name": "a", "share": 1e999}', "corrupt", "out of range"),
        (b'{"format": "note", "version": 1, "name": "%s"}' % (b"a" * 5000), "corrupt", "length <= 4096"),
        (b'{"format": "note", "version": 1, "name": "a", "more": %s}' % (b"[" * 99 + b"]" * 99), "corrupt", "more"),
        (b'{"format": "note", "version": 1, "name": "a", "more": ' + b"[" * 1_000_000, "corrupt", "corrupt document"),
        (b'{"format": "letter", "version": 1}', "foreign", "'note' expected, but it holds 'letter'"),
        (b"{}", "foreign", "does not name its format"),
        (b'{"format": "note", "version": 2}', "unsupported", "format version 2; this release reads version 1"),
    ],
)
def test_what_is_refused(tmp_path, content, kind, message):
    (tmp_path / "note").write_bytes(content)
    with pytest.raises(sf.ArchiveError, match=message) as caught:
        read_document(tmp_path / "note", Note, format="note")
    assert caught.value.kind == kind


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b" " * 101)
    for name, kind in {
        "absent": "missing",
        "pipe": "system",
        "zero": "system",
        ".": "system",
        "large": "corrupt",
    }.items():
        with pytest.raises(sf.ArchiveError) as caught:
            read_document(tmp_path / name, Note, limit=100)
        assert caught.value.kind == kind, name


def test_an_edited_document_is_noticed_unless_the_checksum_is_removed(tmp_path):
    path = sf.write_archive(tmp_path / "a", **make_patches(rows=20)) / "archive.json"
    edited = path.read_text().replace("adenoma", "adenomA")
    path.write_text(edited)
    with pytest.raises(sf.ArchiveError, match="remove its last field, 'document_xxh3'") as caught:
        sf.open(path.parent)
    assert caught.value.kind == "checksum"
    path.write_text(edited[: edited.index(',\n "document_xxh3"')] + "\n}")
    assert "adenomA" in sf.open(path.parent).classes


# Mutated documents

MUTATIONS = max(EXAMPLES // 10, 50)
TOKENS = [b"null", b"-1", b"9" * 30, b"9" * 5000, b"1e999", b"NaN", b"\xff", b"\\ud800"]
TOKENS += [b'"', b"[", b"{", b"[[[[", b"]", b"}", b","]


@st.composite
def mutations(draw, content):
    """A document with bytes flipped, cut out, doubled, or replaced by what parsers stumble over."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 40)))
        middle = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8), st.just(content[start:stop] * 2)))
        content = content[:start] + middle + content[stop:]
    return content


def fuzz(file, read, limit=MUTATIONS):
    """Reading mutated documents ends in a ShazamError, or gives what was written."""
    right = file.read_bytes()
    expected = read()

    @settings(max_examples=limit, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(mutations(right))
    def check(content):
        file.write_bytes(content)
        try:
            found = read()
        except sf.ShazamError:
            return
        assert found == expected

    check()
    file.write_bytes(right)


def test_mutated_archives(tmp_path):
    path = sf.write_archive(tmp_path / "a", **make_patches(rows=20))

    def read():
        archive = sf.open(path)
        columns = (archive.labels, archive.splits, archive.slide_index, archive.group_index, archive.coords)
        values = [column.tolist() for column in columns]
        return (
            archive.teachers,
            archive.classes,
            archive.slides,
            archive.groups,
            values,
            archive.gather(range(20)).tolist(),
        )

    fuzz(path / "archive.json", read)


def test_mutated_part_records_and_claims(tmp_path):
    """The next run alone gives the right archive, or says what is wrong."""
    from shazam_fast.archive.parts import ArchiveHead, ArchiveParts, PartChunk

    parts = ArchiveParts(tmp_path / "a", {"what": "a" * 16, "n": 3}, 2, ArchiveHead({"uni": 4}, "float16"))
    parts.claim()
    columns = dict.fromkeys(("label", "split", "slide", "group", "coords"))

    def write(number):
        chunk = PartChunk({"uni": np.full((3, 4), number)}, columns, 0, str)
        parts.write(number, [chunk], {"number": number})

    def finish():
        parts.claim()
        for number in parts.missing(range(2)):
            write(number)
        return parts.records()

    finish()
    fuzz(tmp_path / "a" / "part-00001.json", finish)
    fuzz(tmp_path / "a" / "_job.json", finish)


def test_every_byte_of_every_document(tmp_path, trained):
    """A byte that is changed, cut out or doubled anywhere is noticed, or changes nothing."""
    student, archive = trained
    student.save(tmp_path / "student")
    sf.score(student, archive, tmp_path / "scores")
    path = sf.write_archive(tmp_path / "a", **make_patches(rows=5))
    record, claim = PartRecord(job="0" * 16, part=None, notes={"n": 1}), Claim(format="c", version=1, job={"n": 2})
    (tmp_path / "record").write_bytes(encode_document(record))
    (tmp_path / "claim").write_bytes(encode_document(claim))
    documents = {
        path / "archive.json": lambda: read_manifest(path),
        tmp_path / "student" / "student.json": lambda: read_card(tmp_path / "student"),
        tmp_path / "record": lambda: read_document(tmp_path / "record", PartRecord),
        tmp_path / "claim": lambda: read_document(tmp_path / "claim", Claim, format="c"),
        tmp_path / "scores" / "_scores.parquet": lambda: open_manifest(tmp_path / "scores"),
    }
    rng = np.random.default_rng(0)
    for file, read in documents.items():
        right, expected = file.read_bytes(), read()
        text = right.find(b'"document_xxh3"')
        places = range(len(right)) if len(right) < 3000 else rng.choice(len(right), 1500, replace=False)
        for at in {*places, *range(max(0, text - 4), min(len(right), text + 40))}:
            other = bytes([right[at] ^ 1 << int(rng.integers(8))])
            for new in (other, b"", right[at : at + 1] * 2):
                file.write_bytes(right[:at] + new + right[at + 1 :])
                with contextlib.suppress(sf.ShazamError):
                    assert read() == expected, (file, at)
        file.write_bytes(right)


def test_a_checksum_under_a_damaged_name_is_noticed(tmp_path):
    path = tmp_path / "note"
    path.write_bytes(encode_document(Note(name="a")).replace(b"document_xxh3", b"documents_xxh"))
    with pytest.raises(sf.ArchiveError, match="unknown field 'documents_xxh' and no checksum") as caught:
        read_document(path, Note)
    assert caught.value.kind == "checksum"


def test_mutated_scores(tmp_path):
    patches = make_patches(rows=20)
    teachers = {name: block.shape[1] for name, block in patches["features"].items()}
    student = sf.Student(sf.StudentConfig(teachers, tuple(patches["classes"]), dim=8, depth=1)).eval()
    sf.score(student, sf.write_archive(tmp_path / "a", **patches), tmp_path / "scores")

    def read():
        scores = sf.open_scores(tmp_path / "scores")
        return scores.classes, scores.teachers, scores.slides, scores.read().to_pylist()

    for file in ("_scores.parquet", "part-00000.parquet"):
        fuzz(tmp_path / "scores" / file, read)


def test_files_of_version_0_1(tmp_path):
    place = Path(__file__).parents[1] / "fixtures" / "version-0.1"
    archive, converted = sf.open(place / "tiny.archive"), sf.open(place / "converted.archive")
    assert (archive.n_rows, archive.teachers) == (48, {"uni": 6, "virchow": 9})
    archive.verify()
    converted.verify()
    assert converted.slides == ("s0", "s1")
    for block in ("bare", "residual"):
        scores, student = sf.open_scores(place / f"scores-{block}"), sf.load(place / f"student-{block}")
        again = sf.score(student, archive, fused=block == "bare")
        assert (len(scores), scores.classes, scores.teachers) == (
            48,
            ("normal", "adenoma", "carcinoma"),
            ("uni", "virchow"),
        )
        np.testing.assert_allclose(scores.probabilities, again.probabilities, atol=1e-5)
        np.testing.assert_array_equal(scores.coords, again.coords)
        assert scores.slides == again.slides
        if block == "residual":
            assert scores.shares is None
            continue
        np.testing.assert_allclose(scores.shares, again.shares, atol=1e-5)
        np.testing.assert_allclose(scores.fused, again.fused, atol=1e-4)
        assert {"share_uni", "share_virchow", "fused"} <= set(scores.read().column_names)
