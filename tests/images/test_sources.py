"""Tables of images: folders, class folders, manifests, and what is wrong with them."""

import numpy as np
import pytest
from pictures import write_patches

import shazam_fast as sf
from shazam_fast.images.sources import class_folders, image_folder, manifest


@pytest.fixture
def classes(tmp_path):
    """Class folders b and a, with 2 and 3 images."""
    write_patches(tmp_path / "set" / "b", 2)
    write_patches(tmp_path / "set" / "a", 3)
    return tmp_path / "set"


def names(table, root):
    return [str(path.relative_to(root)) for path in table.paths]


def test_a_folder_is_read_in_order_and_only_its_images(classes, caplog):
    (classes / "a" / "Thumbs.db").write_bytes(b"x")
    (classes / "a" / "._000.png").write_bytes(b"x")
    (classes / ".cache").mkdir()
    (classes / ".cache" / "9.png").write_bytes(b"x")
    (classes / "b" / "circle").symlink_to(classes)
    caplog.set_level("INFO")
    table = image_folder(classes)
    assert names(table, classes) == ["a/000.png", "a/001.png", "a/002.png", "b/000.png", "b/001.png"]
    assert table.labels.tolist() == [-1] * 5
    assert table.splits.tolist() == [255] * 5
    assert "passed over 1 file that" in caplog.text


def test_class_folders_give_labels(classes):
    table = class_folders(classes)
    assert table.classes == ("a", "b")
    assert table.labels.tolist() == [0, 0, 0, 1, 1]
    assert class_folders(classes, ["b", "a"]).labels.tolist() == [1, 1, 1, 0, 0]


def test_folders_called_as_splits_give_splits(tmp_path):
    for split, count in (("train", 2), ("valid", 1), ("test", 1)):
        for name in ("x", "y"):
            write_patches(tmp_path / split / name, count)
    table = class_folders(tmp_path)
    assert table.classes == ("x", "y")
    assert table.splits.tolist() == [2, 2, 0, 0, 0, 0, 1, 1]
    assert table.labels.tolist() == [0, 1, 0, 0, 1, 1, 0, 1]


def write_manifest(folder, text):
    (folder / "images.csv").write_text(text)
    return folder / "images.csv"


def test_a_manifest_with_half_a_position(classes):
    with pytest.raises(sf.MismatchError, match="a column y expected beside 'x'"):
        manifest(write_manifest(classes, "path,slide,x\nb/000.png,s1,0\n"))


def test_a_manifest_says_all_that_is_known(classes):
    text = "path,label,split,group,slide,x,y\n"
    text += "b/000.png,tumour,train,p1,s1,0,256\na/000.png,normal,val,p2,s2,512,0\na/001.png,,,,,7,8\n"
    table = manifest(write_manifest(classes, text))
    assert names(table, classes) == ["b/000.png", "a/000.png", "a/001.png"]
    assert table.classes == ("normal", "tumour")
    assert table.labels.tolist() == [1, 0, -1]
    assert table.splits.tolist() == [0, 1, 255]
    assert table.groups == ("p1", "p2", "")
    assert table.slides == ("s1", "s2", "")
    assert table.coords.tolist() == [[0, 256], [512, 0], [7, 8]]


def test_a_manifest_of_paths_alone(classes):
    table = manifest(write_manifest(classes, f"image_path\n{classes / 'a' / '000.png'}\n"))
    assert (len(table), table.labels.tolist(), table.groups, table.coords) == (1, [-1], (), None)


# What is wrong


def test_no_images(tmp_path):
    with pytest.raises(sf.ImageError, match="no image found"):
        image_folder(tmp_path)


def test_an_empty_manifest(tmp_path):
    with pytest.raises(sf.ImageError, match="no images"):
        manifest(write_manifest(tmp_path, "path,label\n"))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(sf.ImageError, match="nowhere: a folder of images expected: No such file"):
        image_folder(tmp_path / "nowhere")


def test_no_class_folders(tmp_path):
    write_patches(tmp_path, 2)
    with pytest.raises(sf.ImageError, match="one folder for each class expected"):
        class_folders(tmp_path)


def test_a_class_folder_without_images(classes):
    (classes / "c").mkdir()
    with pytest.raises(sf.ImageError, match="set/c: no image found"):
        class_folders(classes)


def test_a_class_folder_that_is_not_in_the_list(classes):
    with pytest.raises(sf.MismatchError, match=r"labels \['b'\] are not among the classes"):
        class_folders(classes, ["a", "c"])


def test_a_label_that_is_not_in_the_list(classes):
    with pytest.raises(sf.MismatchError, match=r"labels \['adenoma'\] are not among the classes"):
        manifest(write_manifest(classes, "path,label\na/000.png,adenoma\n"), ["normal"])


def test_duplicate_paths(classes):
    with pytest.raises(sf.ImageError, match=r"listed more than once: 1 image: .*a/000.png"):
        manifest(write_manifest(classes, "path\na/000.png\nb/../a/000.png\n"))


def test_missing_files_are_listed(classes):
    with pytest.raises(sf.ImageError, match=r"7 of 8 image files are missing: .*n0.png.* and 2 more"):
        manifest(write_manifest(classes, "path\na/000.png\n" + "".join(f"n{i}.png\n" for i in range(7))))


def test_a_manifest_without_paths(classes):
    with pytest.raises(sf.MismatchError, match=r"a column of paths .* expected, found label"):
        manifest(write_manifest(classes, "label\nx\n"))


def test_a_split_that_does_not_exist(classes):
    with pytest.raises(sf.MismatchError, match=r"images.csv: row 2: unknown split 'holdout'"):
        manifest(write_manifest(classes, "path,split\na/000.png,holdout\n"))


def test_a_split_that_cuts_a_patient(classes):
    text = "path,split,patient_id\na/000.png,train,p1\na/001.png,test,p1\nb/000.png,test,\nb/001.png,train,\n"
    with pytest.raises(sf.MismatchError, match="group 'p1' has patches in train, test"):
        manifest(write_manifest(classes, text))


def test_a_position_that_is_no_number(classes):
    with pytest.raises(sf.MismatchError, match="row 2, column 'y': a number expected, found 'left'"):
        manifest(write_manifest(classes, "path,x,y\na/000.png,1,left\n"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.array([0, 2])}, "labels -1 .* to 0 expected .* found 0 to 2"),
        ({"splits": np.zeros(3, np.uint8)}, "one entry for each of 2 images expected, found {'splits': 3}"),
        ({"groups": ("p",)}, "found {'groups': 1}"),
    ],
)
def test_columns_that_do_not_fit(classes, changed, message):
    columns = {"labels": np.zeros(2, np.int64), "classes": ("x",), "splits": np.zeros(2, np.uint8), **changed}
    with pytest.raises(sf.MismatchError, match=message):
        sf.ImageTable((classes / "a" / "000.png", classes / "a" / "001.png"), **columns)


def test_a_class_folder_whose_name_means_unknown(classes):
    (classes / "b").rename(classes / "NA")
    with pytest.raises(sf.ImageError, match="'NA' means that a class is unknown"):
        class_folders(classes)


def test_a_manifest_in_other_dialects(classes, caplog):
    text = "Image Path;Grade;Patient ID;X;Y\nb/000.png;10;p1;256.0;0\na/000.png;2;NA;;\n"
    caplog.set_level("INFO")
    table = manifest(write_manifest(classes, text), label_column="grade")
    assert (table.classes, table.labels.tolist()) == (("2", "10"), [1, 0])
    assert (table.groups, table.coords.tolist()) == (("p1", ""), [[256, 0], [-1, -1]])
    assert manifest(write_manifest(classes, text)).classes == ()
    assert "labels are unknown: no column of labels" in caplog.text
    with pytest.raises(sf.MismatchError, match=r"images.csv: row 2: x and y expected, found one of them"):
        manifest(write_manifest(classes, "path,x,y\na/000.png,1,\n"))
    with pytest.raises(sf.MismatchError, match=r"images.csv: row 3: no path in the column 'path'"):
        manifest(write_manifest(classes, "path,label\na/000.png,1\n,2\n"))


def test_folders_of_splits_with_others_beside_them(tmp_path):
    for folder in ("train/x", "test/x", "extra/x"):
        write_patches(tmp_path / folder, 1)
    with pytest.raises(sf.ImageError, match=r"folders of splits \(test, train\) and beside them 'extra'"):
        class_folders(tmp_path)
    for folder in ("valid", "invalid"):
        write_patches(tmp_path / "quality" / folder, 1)
    assert class_folders(tmp_path / "quality").classes == ("invalid", "valid")
