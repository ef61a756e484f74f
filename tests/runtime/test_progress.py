"""Progress in a notebook. Terminals are tested with the command line, lines of trainings with them."""

import sys
import types

import pytest

from shazam_fast.runtime import progress
from shazam_fast.runtime.progress import Progress


@pytest.fixture
def notebook(monkeypatch):
    """The modules of IPython that a kernel has loaded; returns what a cell shows."""
    shown = []

    class Handle:
        def update(self, html):
            shown.append(html)

    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    display.HTML = str
    display.display = lambda first, display_id: Handle()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    return shown


def test_a_bar_below_the_cell(notebook, caplog):
    caplog.set_level("INFO", "shazam_fast")
    with Progress("scoring <a>", 4, "patches") as work:
        work.advance(2, "epoch 1 & 2")
        work.tell("a line")
    assert 'scoring &lt;a&gt; <progress max="4" value="2"></progress>' in notebook[-1]
    assert "patches/s epoch 1 &amp; 2" in notebook[-1]
    assert not caplog.records, "there is a bar, so no line"


def test_work_inside_other_work_is_not_shown(notebook):
    with Progress("outer", 2, "fits") as outer:
        with Progress("inner", 100, "patches") as inner:
            inner.advance(50)
        assert not notebook
        outer.advance(1)
    assert "outer" in notebook[-1]
    assert len(notebook) == 1


def test_ipython_in_a_terminal_is_no_notebook(notebook, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    caplog.set_level("INFO", "shazam_fast")
    with Progress("scoring", 4, "patches") as work:
        work.advance(2)
        work.tell("a line")
    assert not notebook
    assert [record.getMessage() for record in caplog.records] == ["a line"]
