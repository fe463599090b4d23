"""The report of a real sweep: every file is there and says what the result lines say, and a browser shows it."""

from __future__ import annotations

import csv
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gossamer.experiments import results
from gossamer.report import job
from gossamer.report import page as report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def finished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: a line is added to it here."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("copy") / "sweep")


@pytest.fixture(scope="module")
def written(finished: Path) -> report.Report:
    results.append(
        finished / results.FILE,
        {
            "run": "sparse-0.2-r0",
            "status": "failed",
            "error": "ValueError: <made> up",
            "method": "sparse",
            "config": {},
        },
    )
    return report.write(finished)


def test_the_table_as_csv_holds_the_means(written: report.Report, finished: Path) -> None:
    with written.table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    points = results.summarise(results.read(finished))
    assert [(line["method"], float(line["accuracy"]), float(line["params"])) for line in lines] == [
        (p.method, p.accuracy, p.params) for p in points
    ]
    assert {line["rounds"] for line in lines} == {"2"}


def test_figures_are_readable_images(written: report.Report) -> None:
    from PIL import Image

    assert {path.name for path in written.figures} == {"accuracy.svg", "accuracy.png", "latency.svg", "latency.png"}
    for path in written.figures:
        if path.suffix == ".svg":
            assert ET.parse(path).getroot().tag.endswith("svg")
        else:
            with Image.open(path) as image:
                assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    results.append(tmp_path / results.FILE, {"run": "dense-r0", "status": "failed", "error": "no memory"})
    with pytest.raises(ValueError, match="no memory"):
        report.write(tmp_path)


def test_the_page_needs_nothing_from_elsewhere(written: report.Report) -> None:
    page = written.page.read_text()
    head = page.split("<body>")[0]
    assert 'src="http' not in page
    assert "<link" not in head.replace('<link rel="icon" href="data:,">', "")


def test_names_that_look_like_mathtext_or_markup_are_drawn(tmp_path: Path) -> None:
    """A `$` begins mathtext in matplotlib, and "$x^$" is none."""
    shared = {"status": "done", "alpha": 0.1, "width": 1.0, "density": 0.1, "accuracy": 0.9, "params": 9, "madds": 9}
    config = {"model": "$x^$ <b>", "data": "\\frac $"}
    point = {"step": 1, "seconds": 1.0, "cpu_seconds": 1.0, "density": 1.0, "accuracy": 0.5, "loss": 1.0}
    for name, more in (("sweep", {"method": "sparse"}), ("growth", {"method": "$y_$", "curve": [point]})):
        results.append(tmp_path / name / results.FILE, {"run": "$r^$", **shared, "config": config, **more})
        job.show(tmp_path / name)
        assert "$x^$ &lt;b&gt;" in (tmp_path / name / "report.html").read_text()
        for figure in (tmp_path / name / "figures").glob("*.svg"):
            ET.parse(figure)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("the browser test needs Chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def test_a_browser_shows_plots_and_table_without_errors(
    written: report.Report, finished: Path, browser: Any, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(120_000)  # a busy machine takes its time over 5 MB of JavaScript
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    page.goto(written.page.resolve().as_uri())
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 0")

    points = results.summarise(results.read(finished))
    drawn = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map(p => [...p.querySelectorAll('.scatterlayer .trace')]"
        ".map(t => t.querySelectorAll('.point').length))"
    )
    assert len(drawn) == 6  # params, madds, one image, a batch; test accuracy, loss
    fronts = [len(results.pareto(points, kind)) for kind in ("params", "madds", "ms_image", "ms_batch")]
    assert drawn[:4] == [[front, 2, 2, 1] for front in fronts]  # thin, sparse (each with the dense end), hybrid
    lines = page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].slice(4).map(p => p.data.length)")
    assert lines == [8, 8]

    body = page.locator("#table tbody tr")
    assert body.count() == len(points)
    assert f"{points[0].params:,.0f}" in body.nth(0).inner_text()
    assert page.locator("#matched tbody tr").count() == 1
    assert "<made> up" in page.locator("#failed").inner_text()
    assert "digits" in page.locator("#configuration").inner_text()
    assert "cores" in page.locator("#machine").inner_text()

    page.locator(".js-plotly-plot").first.locator(".scatterlayer .trace").nth(2).locator(".point").first.hover(
        force=True
    )
    page.wait_for_selector(".hoverlayer .hovertext")
    assert "params" in page.locator(".hoverlayer .hovertext").first.text_content()
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert (tmp_path / "report.png").stat().st_size > 50_000
    assert said == []
