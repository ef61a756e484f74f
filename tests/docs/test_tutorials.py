"""The tutorials run from an empty folder, and what is committed of them has small pictures and no errors."""

import pytest
from pages import ROOT

nbclient = pytest.importorskip("nbclient", reason="tutorials are notebooks (extra: test)")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel", reason="tutorials run in IPython's kernel (extra: test)")
pytest.importorskip("h5py", reason="a tutorial writes HDF5 files (extra: hdf5)")
pytest.importorskip("matplotlib", reason="tutorials draw (extra: heatmap)")

TUTORIALS = sorted((ROOT / "docs" / "pages" / "tutorials").glob("*.ipynb"))


def pictures(notebook):
    """How many pictures each cell shows."""
    return [
        sum("image/png" in output.get("data", {}) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_are_four():
    assert len(TUTORIALS) == 4


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    committed = pictures(notebook)
    text = path.read_text(encoding="utf-8")
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(tmp_path))
    assert pictures(notebook) == committed
    assert sum(committed) >= 1
    assert '"output_type": "error"' not in text
    assert "<progress" not in text, "a progress bar's rate is that of one machine"
    assert len(text) < 200_000
