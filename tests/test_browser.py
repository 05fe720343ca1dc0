"""The page in a real browser: Debian's chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_app import running_app
from test_predictor import encoded, picture, save_tiny_vit

from classifier import load_predictor
from space.page import EXAMPLES

playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser: pip install playwright")
CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [save_tiny_vit(folder / "first"), save_tiny_vit(folder / "second", seed=1)]


@pytest.fixture(scope="module")
def url(models, tmp_path_factory) -> Iterator[str]:
    with running_app(models, tmp_path_factory.mktemp("app")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for i in range(3):
        (folder / f"{i}.png").write_bytes(encoded(picture(i)))
    return sorted(folder.iterdir())


def opened(browser, url: str, viewport: dict, theme: str, faults: list[str]):
    """The page, loaded; console errors, exceptions and requests to other hosts are collected in `faults`."""
    playwright.expect.set_options(timeout=60_000)  # milliseconds; an idle machine needs two thousand
    page = browser.new_page(viewport=viewport)
    page.set_default_timeout(60_000)
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else faults.append(r.url))
    page.goto(f"{url}/?__theme={theme}")
    page.locator("#files input[type=file]").wait_for(state="attached")
    return page


def fits(page) -> bool:
    """Nothing sticks out of the window on the right, save what scrolls within its own box."""
    return page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth
            && [...document.querySelectorAll('.block, h1, p, .facts > *, #examples button')]
                .every(element => element.getBoundingClientRect().right <= innerWidth)"""
    )


def captions(predictor, files: list[Path]) -> list[str]:
    return [f"{top['label']} {top['score']:.0%}" for [top] in predictor(files, top_k=1)]


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_upload_select_and_clear(browser, url, models, files, viewport, theme):
    faults, expect = [], playwright.expect
    page = opened(browser, url, viewport, theme, faults)
    assert page.evaluate("document.body.classList.contains('dark')") is (theme == "dark")
    assert fits(page)

    page.set_input_files("#files input[type=file]", files)
    expected = load_predictor(models[0])(files, top_k=5)
    expect(page.locator("#gallery .caption-label")).to_have_text(captions(load_predictor(models[0]), files))
    expect(page.locator("#label h2")).to_have_text(expected[0][0]["label"])
    assert fits(page)

    page.locator("#gallery .thumbnail-item").nth(1).click()
    expect(page.locator("#label dt")).to_have_text([entry["label"] for entry in expected[1]])
    expect(page.locator("#label")).to_contain_text(files[1].name)
    assert fits(page)

    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#gallery")).to_have_count(0)
    page.close()
    assert faults == []


def test_another_model_and_fewer_labels(browser, url, models, files):
    faults, expect = [], playwright.expect
    page = opened(browser, url, DESKTOP, "light", faults)
    page.set_input_files("#files input[type=file]", files)
    expect(page.locator("#gallery .caption-label")).to_have_count(3)
    page.get_by_label("Model").click()
    page.get_by_role("option", name="second").click()
    expect(page.locator("#gallery .caption-label")).to_have_text(captions(load_predictor(models[1]), files))
    expect(page.locator("#header")).to_contain_text("second")
    slider = page.get_by_role("slider")
    slider.focus()
    slider.press("ArrowLeft")
    expect(page.locator("#label dt")).to_have_count(4)
    page.close()
    assert faults == []


def test_a_broken_file_is_named_and_more_files_join(browser, url, files, tmp_path):
    faults, expect = [], playwright.expect
    (tmp_path / "<b>broken.jpg").write_bytes(b"no image")
    page = opened(browser, url, PHONE, "light", faults)
    page.set_input_files("#files input[type=file]", [tmp_path / "<b>broken.jpg"])
    expect(page.locator("#notice")).to_contain_text("1 of 1 could not be read")
    expect(page.locator("#notice")).to_contain_text("<b>broken.jpg: not an image")
    expect(page.locator("#gallery")).to_have_count(0)
    page.set_input_files("#files input[type=file]", files[:2])
    expect(page.locator("#gallery .caption-label")).to_have_count(2)
    expect(page.locator("#notice")).to_contain_text("1 of 3 could not be read")
    page.get_by_text("All results as a table").click()
    expect(page.locator("#table")).to_contain_text("error")
    with page.expect_download() as download:
        page.get_by_text("Download CSV").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert [line.split(",")[2] for line in lines] == ["status", "error", "ok", "ok"]
    page.close()
    assert faults == []


def test_an_example_answers(browser, url):
    faults, expect = [], playwright.expect
    page = opened(browser, url, DESKTOP, "light", faults)
    examples = page.locator("#examples button")
    if not EXAMPLES:
        pytest.skip("examples/ has no pictures yet")
    expect(examples).to_have_count(len(EXAMPLES))
    examples.nth(1).click()
    expect(page.locator("#label")).to_contain_text(EXAMPLES[1].name)
    page.close()
    assert faults == []
