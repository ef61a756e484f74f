"""The report in a real browser: nothing leaves, nothing fails, all of it is drawn."""

import json
import shutil
import subprocess

import pytest
from synthetic import make_patches

import shazam_fast as sf

pytest.importorskip("matplotlib", reason="reports need matplotlib (extra: report)")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    archive = sf.open(sf.write_archive(folder / "patches.archive", **make_patches()))
    result = sf.train(archive, epochs=3, batch_size=16, dim=16, depth=2, device="cpu", preset="huncrc")
    found = sf.compare(archive, ["best_single_balanced", "lr_concat_balanced"], repeats=2)
    return sf.report(result, archive, folder / "report.html", comparison=found, device="cpu")


def browse(page, tmp_path, *options):
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
        f"--log-net-log={tmp_path / 'net.json'}", "--enable-logging=stderr", "--v=0", *options, page.as_uri(),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return run


def requests_of_the_page(log):
    """What the page asked for; the browser's own requests (for updates) have no origin."""
    text = log.read_text().rstrip()
    events = json.loads(text if text.endswith("}") else text.rstrip(",") + "]}")["events"]
    found = [event.get("params", {}) for event in events]
    return {p["url"] for p in found if "url" in p and p.get("initiator", "not an origin") != "not an origin"}


def test_nothing_is_asked_of_the_network_and_the_console_is_quiet(page, tmp_path):
    run = browse(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in run.stderr, run.stderr
    for name in ("comparison", "metrics", "curves", "shares", "redundancy", "rescue", "confounding", "hardest"):
        assert f'<section id="{name}">' in run.stdout
    assert requests_of_the_page(tmp_path / "net.json") == set()


def test_a_request_and_an_error_would_be_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<img src='http://127.0.0.1:9/pixel.png'><script>throw Error('loud')</script>")
    run = browse(page, tmp_path, "--dump-dom")
    assert "CONSOLE" in run.stderr
    assert requests_of_the_page(tmp_path / "net.json") == {"http://127.0.0.1:9/pixel.png"}


def test_it_is_drawn_and_printed(page, tmp_path):
    picture, paper = tmp_path / "page.png", tmp_path / "page.pdf"
    browse(page, tmp_path, f"--screenshot={picture}", "--window-size=1200,6000")
    browse(page, tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (6000, 1200)
    rows = (pixels[..., :3].min(axis=2) < 0.5).any(axis=1)  # with ink
    assert rows[:4000].mean() > 0.3
    assert paper.read_bytes().startswith(b"%PDF")
