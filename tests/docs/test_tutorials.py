"""The tutorials run from an empty folder, and what is committed of them has small pictures and no errors."""

import pytest
from pages import ROOT

nbclient = pytest.importorskip("nbclient", reason="tutorials are notebooks (extra: test)")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel", reason="tutorials run in IPython's kernel (extra: test)")
pytest.importorskip("h5py", reason="a tutorial writes HDF5 files (extra: hdf5)")
pytest.importorskip("matplotlib", reason="tutorials draw (extra: heatmap)")

TUTORIALS = sorted((ROOT / "docs" / "pages" / "tutorials").glob("*.ipynb"))


def kinds(notebook):
    """What each cell put out: "error", "stream", or kinds of data."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [{kind for o in cell.outputs for kind in o.get("data", {o.output_type: ""})} for cell in cells]


def test_there_are_four():
    assert len(TUTORIALS) == 4


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    committed = kinds(notebook)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(tmp_path))
    shown = kinds(notebook)
    assert [("image/png" in kind, "text/html" in kind) for kind in shown] == [
        ("image/png" in kind, "text/html" in kind) for kind in committed
    ]
    assert any("image/png" in kind for kind in committed)
    assert not any("error" in kind for kind in committed)
    assert path.stat().st_size < 200_000
