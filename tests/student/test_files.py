"""Students on disk."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from students import make_batch, make_student

import shazam_fast as sf


@pytest.fixture(params=["bare", "residual"])
def student(request):
    return make_student(request.param, dtype=torch.float32)


def test_round_trip(tmp_path, student):
    student.freeze_targets()
    student.add_teacher_heads()
    student.training_record = {"job": {"lr": 0.1}}
    student.save(tmp_path / "s")
    again = sf.load(tmp_path / "s")
    assert again.config == student.config
    assert again.training_record == student.training_record
    assert not again.training
    features, _ = make_batch(student)
    assert torch.equal(again(features).logits, student(features).logits)
    assert torch.equal(again.fixed_targets(features), student.fixed_targets(features))
    tokens = student.tokens(features)
    assert torch.equal(again.teacher_heads(tokens), student.teacher_heads(tokens))
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["README.md", "student.json", "student.safetensors"]
    assert torch.equal(load_file(tmp_path / "s" / "student.safetensors")["qkv"], student.qkv)


def test_missing_files(tmp_path, student):
    with pytest.raises(sf.ArchiveError, match=r"a student is a directory with student.json"):
        sf.load(tmp_path)
    student.save(tmp_path / "s")
    (tmp_path / "s" / "student.safetensors").unlink()
    with pytest.raises(sf.ArchiveError, match=r"student.safetensors: file not found"):
        sf.load(tmp_path / "s")


def without_checksum(card):
    """The card as a user may edit it."""
    content = json.loads(card.read_text())
    del content["document_xxh3"]
    return content


def test_damaged_tensors(tmp_path, student):
    student.save(tmp_path / "s")
    tensors = tmp_path / "s" / "student.safetensors"
    content = tensors.read_bytes()
    for damaged, kind in ((content[:-10], "corrupt"), (content[:-1] + b"\x7f", "checksum"), (b"", "corrupt")):
        tensors.write_bytes(damaged)
        with pytest.raises(sf.ArchiveError, match=r"student.safetensors: (truncated or corrupt|checksum)") as info:
            sf.load(tmp_path / "s")
        assert info.value.kind == kind


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"format": "shazam_fast scores"}, "foreign", "holds scores, but a student expected here"),
        ({"version": 9}, "unsupported", "version 9.*update"),
        ({"config": None}, "corrupt", "corrupt"),
        ({"config": {"dim": 8}}, "corrupt", "tensors do not fit student.json: .* expected"),
        ({"config": {"dim": 10**6}}, "corrupt", "dim: a whole number from 1 to 16384"),
        ({"config": {"depth": 900}}, "corrupt", "tensors do not fit"),
        ({"config": {"teachers": {"uni": 10**8}}}, "corrupt", "tensors do not fit"),
        ({"config": {"teachers": {"uni": 2.5}}}, "corrupt", "corrupt"),
        ({"config": {"classes": ["a", "b", "c", "d"]}}, "corrupt", "tensors do not fit"),
        ({"config": {"block": "moe"}}, "corrupt", "block: one of"),
        ({"tensors": {"qkv": [1]}}, "corrupt", "'qkv' .1. expected"),
        ({"tensors": {"more": [1]}}, "corrupt", "'more' .1. expected, there is none"),
        ({"xxh3": "0" * 16}, "checksum", "does not belong to student.json"),
        ({"training": []}, "corrupt", "corrupt"),
        ({"training": {"teachers": ["uni"]}}, "corrupt", "corrupt"),
        ({"training": {"teachers": {"uni": {"pooling": 3}}}}, "corrupt", "corrupt"),
    ],
)
def test_a_card_that_does_not_fit(tmp_path, student, change, kind, message):
    student.save(tmp_path / "s")
    card = tmp_path / "s" / "student.json"
    content = without_checksum(card)
    for name, value in change.items():
        content[name] = {**content[name], **value} if name == "config" and value else value
    card.write_text(json.dumps(content))
    with pytest.raises(sf.ArchiveError, match=message) as info:
        sf.load(tmp_path / "s")
    assert info.value.kind == kind


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"format": ' + "9" * 10_000 + "}", "\0"])
def test_a_card_that_is_no_document(tmp_path, student, text):
    student.save(tmp_path / "s")
    (tmp_path / "s" / "student.json").write_text(text)
    with pytest.raises(sf.ArchiveError, match=r"student\.json"):
        sf.load(tmp_path / "s")


def test_every_damaged_byte_of_a_card_is_noticed(tmp_path, student):
    student.save(tmp_path / "s")
    card = tmp_path / "s" / "student.json"
    content = card.read_bytes()
    for position in range(0, content.rindex(b"document_xxh3"), 7):
        card.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(sf.ArchiveError):
            sf.load(tmp_path / "s")


@pytest.mark.parametrize("name", ["student.json", "student.safetensors"])
def test_only_regular_files_are_read(tmp_path, student, name):
    """A pipe would block for ever, /dev/zero has no end."""
    student.save(tmp_path / "s")
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        path = tmp_path / "s" / name
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(sf.ArchiveError, match=f"{name}: a regular file expected") as info:
            sf.load(tmp_path / "s")
        assert info.value.kind == "system"


@pytest.mark.skipif(os.getuid() != 0, reason="gives up the rights of root")
def test_no_permission_is_called_that(tmp_path, student):
    student.save(tmp_path / "s")
    for place in (*tmp_path.parents, tmp_path):
        if place.stat().st_uid == 0 and place != place.parent:
            place.chmod(place.stat().st_mode | 0o055)
    (tmp_path / "s" / "student.safetensors").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(sf.ArchiveError, match="no permission to read it") as info:
            sf.load(tmp_path / "s")
    finally:
        os.seteuid(0)
    assert info.value.kind == "permission"


def test_the_dtype_is_kept(tmp_path, student):
    student.double().save(tmp_path / "s")
    assert sf.load(tmp_path / "s").qkv.dtype == torch.float64


def test_the_card_is_strict_json_and_says_where_it_comes_from(tmp_path, student):
    student.training_record = {"metrics": {"auroc": float("nan")}}
    student.save(tmp_path / "s")
    card = json.loads((tmp_path / "s" / "student.json").read_text(), parse_constant=pytest.fail)
    assert card["training"]["metrics"]["auroc"] is None
    assert card["written_by"] == f"shazam_fast {sf.__version__}"
    assert card["tensors"] == {name: list(tensor.shape) for name, tensor in student.state_dict().items()}


def test_a_record_that_is_no_json(tmp_path, student):
    student.training_record = {"model": student}
    with pytest.raises(sf.ShazamError, match="training_record: plain values expected"):
        student.save(tmp_path / "s")


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_students_of_version_01_are_read(block):
    """Written before the rooms: no checksum of the card, shares under their old names, NaN where it had none."""
    path = Path(__file__).parent.parent / "fixtures" / "version-0.1" / f"student-{block}"
    student = sf.load(path)
    assert student.config.block == block
    assert student.training_record["history"]
    assert torch.isfinite(student(torch.ones(2, sum(student.dims))).logits).all()
    for values in student.training_record["metrics"].values():
        assert sf.Metrics.from_dict(values).n_rows > 0


def test_saving_again_replaces(tmp_path, student):
    student.save(tmp_path / "s")
    with torch.no_grad():
        student.qkv.add_(1.0)
    student.save(tmp_path / "s")
    assert torch.equal(sf.load(tmp_path / "s").qkv, student.qkv)


def test_a_full_disk_keeps_what_was_there(tmp_path, student):
    student.save(tmp_path / "s")
    before = json.loads((tmp_path / "s" / "student.json").read_text())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(sf.ShazamError, match="could not be saved"):
            student.save(tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads((tmp_path / "s" / "student.json").read_text()) == before
    sf.load(tmp_path / "s")


def test_the_card_names_the_teachers_licences(tmp_path):
    """Under any tool's name, whatever level of theirs the student reads; "unknown" where the name is not known."""
    config = sf.StudentConfig(
        {"uni_v1": 8, "gigapath:low": 8, "uni2-49b04e14": 8, "my own": 8}, ["a", "b"], dim=8, depth=1
    )
    sf.Student(config).save(tmp_path / "s")
    assert json.loads((tmp_path / "s" / "student.json").read_text())["licences"] == {
        "uni_v1": {"licence": "CC-BY-NC-ND-4.0", "covers_derivatives": True},
        "gigapath:low": {"licence": "Apache-2.0", "covers_derivatives": False},
        "uni2-49b04e14": {"licence": "CC-BY-NC-ND-4.0", "covers_derivatives": True},
        "my own": {"licence": "unknown", "covers_derivatives": None},
    }
    sf.load(tmp_path / "s")
