"""The page's content, safety and behaviour in a real browser."""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import browser
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_report import CPU, HOSTILE, failed_row, pruned_row, run_of, timed_row
from test_report_tables import others

from suite import grids, records
from suite.grids import Grid
from suite.report import build, figures
from suite.report import page as pages
from suite.report.page import runs as run_data
from suite.report.statistics import published
from suite.stages import Pruned, Timing

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"
GRID = "example"


def written(folder: Path, runs: Iterable[Pruned], rows: Iterable[records.Row], *, pictures: int = 0) -> Path:
    """Return the folder of the report of these rows.

    It has at most this number of figures, since they take most of the time.
    """
    runs, drawn = list(runs), figures._of_model
    for row in rows:
        records.write(row, folder)
    grid = Grid(title=f"Title {SCRIPT}", about="About & more.", runs=lambda: runs, timings=(Timing(),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "load", lambda name: grid)
        patch.setattr(figures, "_of_model", lambda *parts: itertools.islice(drawn(*parts), pictures))
        build(GRID, folder)
    return folder / GRID


def data_of(folder: Path) -> dict[str, Any]:
    """Return the data in runs.html."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', (folder / "runs.html").read_text(), re.S
    )
    assert found
    return json.loads(found[1])


class Elements(HTMLParser):
    """The start tags of a page, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


# ---- without a browser -----------------------------------------------------------------------------------------------


def test_no_rows_at_all(tmp_path: Path) -> None:
    folder = written(tmp_path, [run_of(0), run_of(1)], [])
    page = Elements(folder / "index.html")
    assert "0 of 2" in page.text
    assert "not run" in page.text
    assert [run["status"] for run in data_of(folder)["runs"]] == ["missing", "missing"]
    assert dict(data_of(folder)["runs"][0]["configuration"])["base.data"] == "digits"


def test_what_a_name_holds_is_never_code(tmp_path: Path) -> None:
    runs = [run_of(0, name=SCRIPT), run_of(0, name=HOSTILE), run_of(1, name=SCRIPT)]
    rows = [pruned_row(runs[0], 80), pruned_row(runs[1], 80), failed_row(runs[2], "failed", SCRIPT)]
    folder = written(tmp_path, runs, rows)
    for name in ("index.html", "runs.html"):
        page = Elements(folder / name)
        assert [tag for tag, _ in page.tags].count("script") == (1 if name == "index.html" else 2)
        assert not any("onerror" in attributes for _, attributes in page.tags)
    assert html.unescape(Elements(folder / "index.html").text).count(SCRIPT) >= 3
    assert data_of(folder)["runs"][2]["reason"] == SCRIPT
    assert SCRIPT in data_of(folder)["runs"][0]["label"]


def test_numbers_that_are_no_numbers_are_empty_cells(tmp_path: Path) -> None:
    run = run_of()
    row = pruned_row(run, 80, params_cut_pct=None, prunable_macs_cut_pct=None)
    text = (written(tmp_path, [run], [row]) / "index.html").read_text()
    assert "nan" not in text.lower()
    assert 'data-v=""' in text


def test_each_figure_stands_once(tmp_path: Path) -> None:
    runs = [run_of(seed, budget, name) for name in ("a", "b") for budget in (0.3, 0.5) for seed in (0, 1)]
    rows = [pruned_row(run, 80 - run.seed, macs_cut_pct=100 * run.budget.share) for run in runs]
    page = Elements(written(tmp_path, runs, rows, pictures=3) / "index.html")
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == len(set(sources)) == 3
    assert str(sources[0]).startswith("pareto_macs"), "the main figure is on the first screen"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1.31 [1.27, 1.36] (5), no difference", ("1.31", "[1.27, 1.36] (5), no difference")),
        ("94.31 ± 0.20 (5)", ("94.31 ± 0.20", "(5)")),
        ("50 %", ("50 %", "")),
        ("not trusted", ("not trusted", "")),
        ("", ("", "")),
    ],
)
def test_a_number_and_its_detail_are_apart(text: str, parts: tuple[str, str]) -> None:
    assert pages._parts(text) == parts


def test_a_run_shows_what_its_folder_has(tmp_path: Path) -> None:
    run = run_of()
    work = tmp_path / "work" / run.key
    work.mkdir(parents=True)
    (work / "history.jsonl").write_text("".join(f'{{"epoch": {e}, "loss": {1 / e}}}\n' for e in range(1, 201)))
    (work / "log.txt").write_text("\n".join(f"line {i}" for i in range(100)))
    (work / "packed.safetensors").write_text("no packed network")
    shown = data_of(written(tmp_path, [run], [pruned_row(run, 80)]))
    (about,) = shown["runs"]
    assert about["curves"] == [["fine-tuning", run.key]]
    curve = shown["curves"][run.key]
    assert curve["epoch"][0] == 1
    assert curve["epoch"][-1] == 200
    assert len(curve["epoch"]) <= run_data.POINTS + 1
    assert curve["loss"][-1] == 0.005
    assert about["log"].splitlines()[-1] == "line 99"
    assert len(about["log"].splitlines()) == run_data.LOG_LINES
    assert about["structure"] == []


@pytest.mark.parametrize("content", ["", "{", "[1]\n[2]\n", '{"epoch": 1}\n', '{"loss": 1}\n{"loss": 2}\n'])
def test_a_damaged_log_has_no_curves(tmp_path: Path, content: str) -> None:
    run = run_of()
    (tmp_path / "work" / run.key).mkdir(parents=True)
    (tmp_path / "work" / run.key / "history.jsonl").write_text(content)
    assert data_of(written(tmp_path, [run], []))["curves"] == {}


def test_rows_share_their_provenance(tmp_path: Path) -> None:
    runs = [run_of(seed) for seed in range(20)]
    shown = data_of(written(tmp_path, runs, [pruned_row(run, 80) for run in runs]))
    assert len(shown["provenance"]) == 1
    assert dict(shown["provenance"][0])["commit"] == "0123456789abcdef0123456789abcdef01234567"


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    run = run_of()
    folder = written(tmp_path, [run], [pruned_row(run, 80), timed_row(run, (1.2, 1.1, 1.3))], pictures=1)
    for name in ("index.html", "runs.html"):
        for tag, attributes in Elements(folder / name).tags:
            for target in (attributes.get("src"), attributes.get("href")):
                if target and not target.startswith(("#", "data:")):
                    assert not urlparse(target).scheme, (tag, target)
                    assert (folder / unquote(urlparse(target).path)).exists(), (tag, target)
            if tag == "img":
                assert attributes["alt"]
                assert attributes["width"]


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with browser.opened(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with figures, a missing, a failed and a hostile run."""
    results = tmp_path_factory.mktemp("results")
    runs = [run_of(seed, budget, name) for name in ("a", "b", SCRIPT) for budget in (0.3, 0.5) for seed in (0, 1)]
    rows: list[records.Row] = []
    for number, run in enumerate(runs[:-2]):
        rows.append(pruned_row(run, 80 - number, macs_cut_pct=100 * run.budget.share))
        rows.append(timed_row(run, (1 + number / 9, 1.01, 2.2)))
    rows.append(failed_row(runs[-1], "failed", SCRIPT))
    work = results / "work" / runs[0].key
    work.mkdir(parents=True)
    (work / "history.jsonl").write_text("".join(f'{{"epoch": {e}, "loss": {1 / e}}}\n' for e in range(1, 9)))
    (work / "log.txt").write_text(f"the end of the log {SCRIPT}")
    (results / "paper" / "claims").mkdir(parents=True)
    (results / "paper" / "claims" / "claims.md").write_text("# Claims")
    theirs = others(base_top1_pct=82.0, flops_cut_pct=50.0, source=f"a paper {SCRIPT}", runs="median of 5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "load", lambda *_: theirs)
        return written(results, runs, rows, pictures=2)


def errors(driver: webdriver.Chrome) -> list[Any]:
    """Return the lines of the browser's console."""
    return driver.get_log("browser")


def column(driver: webdriver.Chrome, heading: str) -> list[str]:
    """The visible cells of a column, from top to bottom."""
    return driver.execute_script(
        "const heads = [...document.querySelectorAll('#results thead th')].map((th) => th.textContent.trim());"
        "const at = heads.indexOf(arguments[0]);"
        "return [...document.querySelectorAll('#results tbody tr:not([hidden])')].map((tr) => tr.cells[at].textContent);",
        heading,
    )


def head(driver: webdriver.Chrome, heading: str) -> Any:
    return driver.find_element(By.XPATH, f"//table[@id='results']//th/button[normalize-space()='{heading}']")


@pytest.mark.slow
def test_headers_sort_by_number_and_by_text_and_empty_cells_come_last(driver: webdriver.Chrome, folder: Path) -> None:
    driver.get((folder / "index.html").as_uri())
    accuracies = column(driver, "pruned top-1 %")
    values = sorted(float(text.split()[0]) for text in accuracies if text)
    for reverse, state in ((False, "ascending"), (True, "descending")):
        head(driver, "pruned top-1 %").click()
        shown = column(driver, "pruned top-1 %")
        assert [float(text.split()[0]) for text in shown[:-1]] == sorted(values, reverse=reverse)
        assert shown[-1] == ""
        sorted_by = driver.find_elements(By.CSS_SELECTOR, "[aria-sort]")
        assert [cell.get_attribute("aria-sort") for cell in sorted_by] == [state]
    head(driver, "method").send_keys(Keys.ENTER)  # by keyboard
    names = column(driver, "method")
    assert names == sorted(names, key=str.lower)
    assert errors(driver) == []


@pytest.mark.slow
def test_comparisons_warnings_published_numbers_and_claims_are_on_the_page(
    driver: webdriver.Chrome, folder: Path
) -> None:
    driver.get((folder / "index.html").as_uri())
    bar = [link.text for link in driver.find_elements(By.CSS_SELECTOR, ".bar a")]
    assert {"Told apart", "Published", "Claims"} <= set(bar)
    said = [node.text for node in driver.find_elements(By.CSS_SELECTOR, "#compared ~ .warning")]
    assert any("fewer than 3 runs to compare" in text for text in said)
    (table,) = driver.find_elements(By.CSS_SELECTOR, "[aria-label='Published numbers: digits, resnet8'] table")
    heads = [cell.text for cell in table.find_elements(By.TAG_NAME, "th")]
    assert {"published", "ours", "difference pp", "verdict"} <= set(heads)
    assert f"a paper {SCRIPT}" in table.text
    assert "median drop pp" in table.text
    assert set(column(driver, "device")) == {CPU, ""}
    medians = column(driver, "median %")
    assert medians[0] == "79.50"
    assert "claims.md" in str(driver.find_element(By.LINK_TEXT, "The claims under test").get_attribute("href"))
    assert errors(driver) == []


@pytest.mark.slow
def test_what_the_runs_tell_apart_is_on_the_page(driver: webdriver.Chrome, tmp_path: Path) -> None:
    runs = [run_of(seed, name=name) for name in ("a", "b") for seed in range(5)]
    noise = (0.1, -0.1, 0.05, 0.0, -0.05)
    rows = [pruned_row(run, (85 if run in runs[5:] else 80 + run.seed / 9) + noise[run.seed]) for run in runs]
    driver.get((written(tmp_path, runs, rows) / "index.html").as_uri())
    (table,) = driver.find_elements(By.CSS_SELECTOR, "[aria-label='Methods told apart: digits, resnet8'] table")
    assert "test_report(name=b) is better" in table.text
    assert driver.find_elements(By.ID, "published") == []
    assert driver.find_elements(By.LINK_TEXT, "The claims under test") == []


@pytest.mark.slow
def test_words_and_menus_filter_together(driver: webdriver.Chrome, folder: Path) -> None:
    driver.get((folder / "index.html").as_uri())
    assert len(column(driver, "method")) == 6
    words = driver.find_element(By.ID, "filter")
    words.send_keys("NAME=B resnet8")
    assert column(driver, "method") == ["test_report(name=b)"] * 2
    driver.find_element(By.XPATH, "//label[contains(., 'budget')]/select/option[.='50 %']").click()
    assert column(driver, "budget") == ["50 %"]
    assert driver.find_element(By.ID, "count").text == "1 of 6 lines"
    driver.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    assert driver.execute_async_script("setTimeout(arguments[0], 20)") is None
    assert len(column(driver, "method")) == 6
    assert errors(driver) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", browser.SIZES)
@pytest.mark.parametrize("name", ["index.html", "runs.html"])
def test_nothing_is_wider_than_the_screen(driver: webdriver.Chrome, folder: Path, name: str, size: str) -> None:
    browser.resize(driver, size)
    driver.get((folder / name).as_uri())
    width = driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= browser.SIZES[size][0]
    assert errors(driver) == []
    browser.resize(driver, "desktop")


@pytest.mark.slow
def test_a_phone_shows_method_budget_accuracy_and_speed_up(driver: webdriver.Chrome, folder: Path) -> None:
    browser.resize(driver, "phone")
    driver.get((folder / "index.html").as_uri())
    shown = driver.execute_script(
        "const edge = document.querySelector('#results').parentElement.getBoundingClientRect().right;"
        "const cells = [...document.querySelectorAll('#results thead th, #results tbody tr:first-child > *')];"
        "return cells.filter((cell) => cell.getBoundingClientRect().right <= edge).map((cell) => cell.textContent.trim());"
    )
    assert shown[:4] == ["method", "budget", "pruned top-1 %", "speed-up x"]
    assert len(shown) == 8, "heads and cells of four columns"
    browser.resize(driver, "desktop")


@pytest.mark.slow
def test_a_phone_shows_figures_at_their_natural_size_and_scrolls_them(driver: webdriver.Chrome, folder: Path) -> None:
    """Text of 9 points then has 12 pixels; at the screen's width it would have 6."""
    shown = (
        "return [...document.querySelectorAll('figure img')].map((image) =>"
        "[image.clientWidth - 16, image.naturalWidth * 96 / 200, image.closest('a').clientWidth])"
    )
    driver.get((folder / "index.html").as_uri())
    (width, natural, room), *_ = driver.execute_script(shown)
    assert natural < width < room, "on a desktop the main figure has the room that it needs"
    browser.resize(driver, "phone")
    for width, natural, room in driver.execute_script(shown):
        assert width == pytest.approx(natural, abs=1)
        assert room < 390
    browser.resize(driver, "desktop")


@pytest.mark.slow
def test_every_link_and_picture_is_there(driver: webdriver.Chrome, folder: Path) -> None:
    driver.get((folder / "index.html").as_uri())
    driver.execute_async_script(
        "Promise.all([...document.images].map((image) => image.decode())).then(() => arguments[0](), () => arguments[0]())"
    )
    sizes = driver.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(sizes) == 2, "two figures, of which the main one stands at the top only"
    assert min(sizes) > 600
    links = driver.execute_script("return [...document.links].map((link) => link.href)")
    for link in links:
        target = urlparse(link)
        assert target.scheme == "file"
        assert Path(unquote(target.path)).exists(), link
        if target.fragment and target.path.endswith("index.html"):
            assert driver.find_elements(By.ID, target.fragment), link
    runs = [urlparse(link).fragment for link in links if "runs.html#" in link]
    assert len(runs) == 10
    driver.get(f"{(folder / 'runs.html').as_uri()}#{runs[-1]}")
    assert runs[-1] in driver.find_element(By.ID, "run").text
    assert errors(driver) == []


@pytest.mark.slow
def test_a_run_is_shown_by_its_address_and_by_a_click(driver: webdriver.Chrome, folder: Path) -> None:
    driver.get((folder / "runs.html").as_uri())
    article = driver.find_element(By.ID, "run")
    for part in ("Result", "Configuration", "Curves: fine-tuning", "Latency", "Provenance", "End of the log"):
        assert part in article.text
    assert "the end of the log </script>" in article.text
    charts = driver.find_elements(By.CSS_SELECTOR, "#run svg[role=img]")
    assert [chart.get_attribute("aria-label") for chart in charts] == ["loss over epochs 1 to 8: from 1 to 0.125"]
    for link in driver.execute_script("return [...document.querySelectorAll('#run a')].map((link) => link.href)"):
        assert Path(unquote(urlparse(link).path)).is_file()
    driver.find_element(By.ID, "find").send_keys("failed")
    shown = [item for item in driver.find_elements(By.CSS_SELECTOR, "#list a") if item.is_displayed()]
    assert len(shown) == 1
    shown[0].click()
    assert driver.find_element(By.CSS_SELECTOR, "#run .warning").text == SCRIPT
    assert driver.find_elements(By.CSS_SELECTOR, "#run img, #run script") == []
    driver.get(f"{(folder / 'runs.html').as_uri()}#pruned-000000000000")
    assert "No such run" in driver.find_element(By.ID, "run").text
    assert errors(driver) == []


@pytest.mark.slow
def test_text_stands_out_in_light_and_dark(driver: webdriver.Chrome, folder: Path) -> None:
    """WCAG AA: a contrast of 4.5 at least between each text colour and what lies behind it."""
    ratio = """
        const luminance = (colour) => {
          const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = (node) => {
          for (let at = node; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (!colour.endsWith(", 0)")) return colour;
          }
        };
        return [...document.querySelectorAll("p, a, td, th, dt, dd, li, label, button, .status, h1, h2, h3")].map((node) => {
          const [a, b] = [luminance(getComputedStyle(node).color), luminance(behind(node))].sort((x, y) => y - x);
          return [(a + 0.05) / (b + 0.05), node.tagName + " " + node.className + " " + node.textContent.slice(0, 40)];
        }).sort((x, y) => x[0] - y[0])[0];
    """
    for scheme in ("dark", "light"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for name in ("index.html", "runs.html"):
            driver.get((folder / name).as_uri())
            least, where = driver.execute_script(ratio)
            assert least >= 4.5, (scheme, name, where)


@pytest.mark.slow
def test_a_thousand_lines_take_two_seconds_at_most(driver: webdriver.Chrome, tmp_path: Path) -> None:
    """The browser counts processor time: parsing, style, layout and scripts.

    A busy machine shows them later.
    """
    runs = [run_of(0, 0.05 + 0.009 * b, f"m{m}") for m in range(10) for b in range(100)]
    many = written(tmp_path, runs, [pruned_row(run, 80 + i % 97 / 10) for i, run in enumerate(runs)])
    driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    for name in ("runs.html", "index.html"):
        driver.get("about:blank")
        before = busy_s(driver)
        driver.get((many / name).as_uri())
        assert busy_s(driver) - before < 2, name
    assert len(column(driver, "method")) == 1000
    for action in (head(driver, "pruned top-1 %").click, lambda: driver.find_element(By.ID, "filter").send_keys("=m3")):
        before = busy_s(driver)
        action()
        assert 0 < busy_s(driver) - before < 2
    assert len(column(driver, "method")) == 100
    assert errors(driver) == []


def busy_s(driver: webdriver.Chrome) -> float:
    """Seconds of the processor that the page's thread has used, the next frame included."""
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")
