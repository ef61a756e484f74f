"""Students on disk."""

import json
import resource

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
    student.training_record = {"job": {"lr": 0.1}}
    student.save(tmp_path / "s")
    again = sf.load(tmp_path / "s")
    assert again.config == student.config
    assert again.training_record == student.training_record
    assert not again.training
    features, _ = make_batch(student)
    assert torch.equal(again(features).logits, student(features).logits)
    assert torch.equal(again.fixed_targets(features), student.fixed_targets(features))
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["student.json", "student.safetensors"]
    assert torch.equal(load_file(tmp_path / "s" / "student.safetensors")["qkv"], student.qkv)


def test_missing_files(tmp_path, student):
    with pytest.raises(sf.ArchiveError, match=r"a student is a directory with student.json"):
        sf.load(tmp_path)
    student.save(tmp_path / "s")
    (tmp_path / "s" / "student.safetensors").unlink()
    with pytest.raises(sf.ArchiveError, match=r"student.safetensors: file not found"):
        sf.load(tmp_path / "s")


def test_damaged_files(tmp_path, student):
    student.save(tmp_path / "s")
    card, tensors = tmp_path / "s" / "student.json", tmp_path / "s" / "student.safetensors"
    content, text = tensors.read_bytes(), card.read_text()
    tensors.write_bytes(content[:-10])
    with pytest.raises(sf.ArchiveError, match=r"student.safetensors: truncated or corrupt"):
        sf.load(tmp_path / "s")
    tensors.write_bytes(content[:-1] + b"\x7f")
    with pytest.raises(sf.ArchiveError, match="checksum mismatch"):
        sf.load(tmp_path / "s")
    tensors.write_bytes(content)
    for damaged, message in [
        ("{", "corrupt"),
        ("[]", "not a 'shazam_fast student'"),
        (text.replace('"version": 1', '"version": 9'), "version 9.*update"),
        (text.replace('"config"', '"konfig"'), "corrupt"),
        (text.replace('"dim": 16', '"dim": 8'), "tensors do not fit"),
        (text.replace('"dim": 16', '"width": 8'), "corrupt"),
    ]:
        card.write_text(damaged)
        with pytest.raises(sf.ShazamError, match=message):
            sf.load(tmp_path / "s")


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
    """Of those that are known by name, whatever level of theirs the student reads."""
    config = sf.StudentConfig({"uni": 8, "gigapath:low": 8, "my own": 8}, ["a", "b"], dim=8, depth=1)
    sf.Student(config).save(tmp_path / "s")
    assert json.loads((tmp_path / "s" / "student.json").read_text())["licences"] == {
        "uni": {"licence": "CC-BY-NC-ND-4.0", "covers_derivatives": True},
        "gigapath:low": {"licence": "Apache-2.0", "covers_derivatives": False},
    }
    sf.load(tmp_path / "s")
