"""The page in a real browser: Debian's chromium, driven by Playwright."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifier import load_predictor
from classifier.images.limits import MAX_BYTES
from space import validation
from space.components import percent
from space.layout import EXAMPLES
from tests.helpers.evaluations import write_evaluation, write_timing
from tests.helpers.models import LABELS, save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, picture
from tests.helpers.running_app import THRESHOLD, running_app

playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser: pip install playwright")
CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
INPUT = "#files input[type=file]"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two random models: `first` has a threshold that half of the pictures miss, and an evaluation and times."""
    folder = tmp_path_factory.mktemp("models")
    first = save_tiny_vit(folder / "first", ood={"threshold": THRESHOLD})
    second = save_tiny_vit(folder / "second", seed=1)
    bins = {"count": [0, 10, 90], "confidence": [0, 0.5, 0.9], "accuracy": [0, 0.4, 0.95]}
    write_evaluation(first, LABELS, accuracy=0.9, accuracy_ci95=[0.89, 0.91], reliability=bins)
    write_timing(first, milliseconds=12.3)
    return [first, second]


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


@pytest.fixture
def opened(browser, url):
    """Opens the page; when the test ends, the browser must have seen no error and no request to another host."""
    faults, pages = [], []

    def open_page(viewport: dict = DESKTOP, theme: str = "light", address: str = url):
        playwright.expect.set_options(timeout=60_000)  # milliseconds; an idle machine needs two thousand
        page = browser.new_page(viewport=viewport)
        pages.append(page)
        page.set_default_timeout(60_000)
        # gradio's own: where an upload ends before its progress is asked for, that is 404, and a "Response" is thrown
        page.on(
            "console",
            lambda message: (
                faults.append(f"{message.text} {message.location['url']}")
                if message.type == "error" and "/gradio_api/upload_progress" not in message.location["url"]
                else None
            ),
        )
        page.on("pageerror", lambda error: faults.append(str(error)) if str(error) != "Response" else None)
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else faults.append(r.url))
        page.goto(f"{address}/?__theme={theme}")
        page.locator(INPUT).wait_for(state="attached")
        page.locator("#upload-buttons button:enabled").first.wait_for()  # once the script is loaded
        return page

    yield open_page
    for page in pages:
        page.close()
    assert faults == []


def fits(page) -> bool:
    """Nothing sticks out of the window on the right, save what scrolls within its own box."""
    return page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth
            && [...document.querySelectorAll('.block, h1, h2, p, .facts > *, .cell, .bars, .figures img')]
                .every(element => element.getBoundingClientRect().right <= innerWidth)"""
    )


def has_whole_rows(page) -> bool:
    """The gallery cuts no row of tiles at its lower edge."""
    return page.evaluate(
        """() => {
            const edge = document.querySelector('#gallery .cells').getBoundingClientRect().bottom;
            const tiles = [...document.querySelectorAll('#gallery .cell')].map(tile => tile.getBoundingClientRect());
            return tiles.every(tile => tile.bottom <= edge || tile.top >= edge);
        }"""
    )


def said(predictor, files: list[Path]) -> list[str]:
    """What the gallery says of readable files."""
    found = []
    for row, known in zip(*predictor.predict_with_ood(files), strict=True):
        [top] = predictor.top(row, 1)
        found.append(f"{top['label']}{'?' if known is False else ''} {percent(top['score'])}")
    return found


def pictures(page, n: int):
    """The gallery's cells, once there are `n` and nothing is being classified."""
    cells = page.locator("#gallery .cell")
    playwright.expect(cells).to_have_count(n)
    playwright.expect(page.locator("#progress [role=progressbar]")).to_have_count(0)
    return cells


@pytest.mark.parametrize(
    ("viewport", "theme"),
    [
        pytest.param(DESKTOP, "light", id="desktop-light"),
        pytest.param(PHONE, "dark", id="phone-dark"),
        pytest.param(DESKTOP, "dark", id="desktop-dark", marks=pytest.mark.slow),
        pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.slow),
    ],
)
def test_choose_select_and_clear(opened, models, files, viewport, theme):
    expect, page = playwright.expect, opened(viewport, theme)
    assert page.evaluate("document.body.classList.contains('dark')") is (theme == "dark")
    assert fits(page)

    page.set_input_files(INPUT, files)
    first, second = map(load_predictor, models)
    pictures(page, 3)
    expect(page.locator("#gallery .said")).to_have_text(said(first, files))
    expect(page.locator("#detail h2")).to_contain_text(first(files[0], top_k=1)[0]["label"])
    assert fits(page)

    page.locator("#gallery .cell").nth(1).click()
    expect(page.locator("#detail .file")).to_have_text(files[1].name)
    for i, predictor in enumerate((first, second)):
        bars = page.locator("#detail section").nth(i)
        expect(bars.locator(".name")).to_have_text([entry["label"] for entry in predictor(files[1], top_k=5)])
        expect(bars.locator("figcaption").first).to_have_text(f"What {predictor.name} saw")
        expect(bars.locator("figcaption").last).to_contain_text("Where it looked for")
    expect(page.locator("#detail img")).to_have_count(4)
    page.wait_for_function(
        "[...document.querySelectorAll('#detail img, #gallery img')].every(image => image.naturalWidth > 0)"
    )
    assert fits(page)

    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#gallery")).to_have_count(0)
    page.set_input_files(INPUT, files[:1])
    pictures(page, 1)


def test_another_model_and_fewer_labels(opened, models, files):
    expect, page = playwright.expect, opened()
    page.set_input_files(INPUT, files)
    pictures(page, 3)
    page.get_by_label("Model").click()
    page.get_by_role("option", name="second").click()
    expect(page.locator("#gallery .said")).to_have_text(said(load_predictor(models[1]), files))
    expect(page.locator("#header")).to_contain_text("second")
    expect(page.locator("#detail h3").first).to_have_text("second")
    slider = page.get_by_role("slider", name="Labels shown").or_(page.locator("#top input[type=range]")).first
    slider.focus()
    slider.press("ArrowLeft")
    expect(page.locator("#detail section").first.locator(".bars li")).to_have_count(4)


def test_sixty_files_of_which_three_are_broken(opened, models, files, tmp_path):
    expect, page = playwright.expect, opened(PHONE)
    for i in range(60):
        (tmp_path / f"{i:02}.png").write_bytes(encoded(picture(i)))
    for name in ("07.png", "20.png"):
        (tmp_path / name).write_bytes(encoded(picture(0))[:60])
    (tmp_path / "59.png").unlink()
    (tmp_path / "<b>{{broken}}${1}.jpg").write_bytes(b"no image")  # what a page of templates may stumble over
    page.set_input_files(INPUT, sorted(tmp_path.iterdir()))
    pictures(page, 60)
    expect(page.locator("#summary")).to_contain_text("60 pictures")
    expect(page.locator("#summary")).to_contain_text("3 of 60 could not be read")
    expect(page.locator("#summary li")).to_have_count(3)
    expect(page.locator("#summary")).to_contain_text("<b>{{broken}}${1}.jpg: not an image")
    expect(page.locator("#gallery .cell.error")).to_have_count(3)
    assert fits(page)
    assert has_whole_rows(page)

    page.get_by_label("Unreadable").click()
    expect(page.locator("#gallery .cell")).to_have_count(3)
    page.get_by_text("All results as a table").click()
    expect(page.locator("#table [data-col='0']")).to_have_count(3)
    page.get_by_label("All", exact=True).click()
    page.get_by_label("Sort by").click()
    page.get_by_role("option", name="Least sure first").click()
    expect(page.locator("#gallery .cell").last).to_have_class("cell error")
    page.wait_for_function(
        """() => {
            const shares = [...document.querySelectorAll('#gallery .cell:not(.error) .said span')]
                .map(span => parseFloat(span.textContent));
            return shares.length === 57 && shares.every((share, i) => !i || shares[i - 1] <= share);
        }"""
    )


def test_filters_and_downloads_go_together(opened, models, files):
    expect, page = playwright.expect, opened()
    page.set_input_files(INPUT, files)
    pictures(page, 3)
    predictor = load_predictor(models[0])
    tops = [top["label"] for [top] in predictor(files, top_k=1)]
    page.get_by_role("listbox", name="Label").or_(page.get_by_label("Label", exact=True)).first.click()
    page.get_by_role("option", name=tops[0], exact=True).click()
    expect(page.locator("#gallery .cell")).to_have_count(tops.count(tops[0]))
    expect(page.locator("#csv")).to_contain_text(f"({tops.count(tops[0])} row")
    with page.expect_download() as download:
        page.locator("#csv").click()
    with Path(download.value.path()).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [file.name for file, top in zip(files, tops, strict=True) if top == tops[0]]
    assert list(rows[0])[:5] == ["index", "file", "status", "known", "models_agree"]
    with page.expect_download() as download:
        page.locator("#json").click()
    records = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert [record["label_1"] for record in records] == [tops[0]] * len(rows)
    assert records[0]["probability_1"] == pytest.approx(predictor(files[records[0]["index"]])[0]["score"], abs=1e-4)

    page.get_by_label("Unsure below, %").first.fill("100")
    page.get_by_label("Unsure below, %").first.press("Enter")
    expect(page.get_by_label("Unsure", exact=True)).to_be_checked()

    page.get_by_label("Unreadable", exact=True).check()  # a filter that is out of sight for one picture
    expect(page.locator("#gallery .cell")).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#results")).to_be_hidden()
    page.set_input_files(INPUT, files[:1])
    pictures(page, 1)


def test_drop_paste_and_choose_a_folder(opened, files, tmp_path):
    """Dropped: files, and a folder; chosen: a folder; pasted. Two files of one name are two pictures."""
    expect, page = playwright.expect, opened()
    content = [list(file.read_bytes()) for file in files]
    transfer = """files => {
        const transfer = new DataTransfer();
        files.forEach(bytes => transfer.items.add(new File([new Uint8Array(bytes)], 'IMG_0001.png', {type:
        'image/png'}))); return transfer;
    }"""
    page.locator("#files button").dispatch_event("drop", {"dataTransfer": page.evaluate_handle(transfer, content[:2])})
    pictures(page, 2)
    expect(page.locator("#gallery .cell img + .said + .sr")).to_have_text([", IMG_0001.png"] * 2)

    page.evaluate(
        f"files => document.dispatchEvent(new ClipboardEvent('paste', {{clipboardData: ({transfer})(files)}}))",
        content[2:],
    )
    pictures(page, 3)

    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    for i, file in enumerate(files):
        shutil.copy(file, tmp_path / "folder" / ("deeper" if i else ".") / file.name)
    (tmp_path / "folder" / ".hidden").write_bytes(b"")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder").click()
    chooser.value.set_files(tmp_path / "folder")
    pictures(page, 6)

    box = page.locator("#files").bounding_box()
    where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(tmp_path / "folder")], "dragOperationsMask": 1}
    devtools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, **where, "data": data})
    pictures(page, 9)


def test_compare_and_about(opened, models, files):
    expect, page = playwright.expect, opened()
    page.set_input_files(INPUT, files)
    pictures(page, 3)
    first, second = map(load_predictor, models)
    tops = [(a["label"], b["label"]) for [a], [b] in zip(first(files, top_k=1), second(files, top_k=1), strict=True)]
    n = sum(a != b for a, b in tops)
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#disagreement")).to_have_text(f"The models disagree on {n} of 3.")
    names = page.locator("#comparison [data-col='3']")
    expect(names).to_have_count(3)
    styles = [names.nth(i).get_attribute("style") or "" for i in range(3)]
    assert ["245, 158, 11" in style for style in styles] == [True] * n + [False] * (3 - n)
    cards = page.locator("#cards section")
    for words in ("90.0%", "89.0% to 91.0%", "12 ms", "2 × Abacus", "M", "MB"):
        expect(cards.first).to_contain_text(words)
    expect(cards.last).not_to_contain_text("ms")  # what was not measured is not told
    expect(cards.last).not_to_contain_text("accuracy")

    page.get_by_role("tab", name="About").click()
    expect(page.locator(".plots img")).to_have_count(2)
    expect(page.get_by_text("deleted within")).to_be_visible()


def test_an_example_answers(opened):
    if not EXAMPLES:
        pytest.skip("examples/ has no pictures yet")
    page = opened()
    examples = page.locator("#examples button")
    playwright.expect(examples).to_have_count(len(EXAMPLES))
    examples.nth(1).click()
    playwright.expect(page.locator("#detail .file")).to_have_text(EXAMPLES[1].name)


def test_scripts_are_found_below_a_path(browser, url):
    """As behind a proxy that serves the page at /demo/: the browser sees that address, the app does not."""
    page = browser.new_page()
    page.route("**/demo/**", lambda route: route.continue_(url=route.request.url.replace("/demo/", "/")))
    page.goto(f"{url}/demo/")
    page.locator("#upload-buttons button:enabled").first.wait_for(timeout=60_000)
    loaded = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert f"{url}/demo/page/upload.js" in loaded
    page.close()


def test_the_page_works_by_keyboard(opened, files):
    expect, page = playwright.expect, opened()
    with page.expect_file_chooser() as chooser:  # around all of it: until it listens, a chooser would be lost
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('#files button')"):
                break
        page.keyboard.press("Enter")
    chooser.value.set_files(files)
    cells = pictures(page, 3)
    for _ in range(40):
        if page.evaluate("document.activeElement.matches('#gallery .cell')"):
            break
        page.keyboard.press("Tab")
    expect(cells.first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(cells.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#detail .file")).to_have_text(files[1].name)
    expect(cells.nth(1)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("End")
    expect(cells.last).to_be_focused()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, files, theme):
    if not AXE.exists():
        pytest.skip("needs axe-core: npm ci")
    page = opened(theme=theme)

    def serious() -> list[str]:
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            f"{violation['id']}: {violation['nodes'][0]['html']}"
            for violation in found
            if violation["impact"] in ("serious", "critical")
        ]

    assert serious() == []
    page.set_input_files(INPUT, files)
    pictures(page, 3)
    page.locator("#detail img").nth(3).wait_for()
    page.get_by_text("All results as a table").click()
    page.wait_for_timeout(500)  # milliseconds, for what unfolds
    assert serious() == []
    for name in ("Compare", "About"):
        page.get_by_role("tab", name=name).click()
        page.locator(".plots img" if name == "About" else "#comparison").first.wait_for()
        page.wait_for_timeout(1000)  # milliseconds, for what fades in
        assert serious() == [], name


@pytest.mark.slow
def test_results_stream_in_and_can_be_stopped(opened, tmp_path):
    expect, page = playwright.expect, opened()
    for i in range(400):
        (tmp_path / f"{i:03}.jpg").write_bytes(encoded(picture(i, (900, 600)), "JPEG"))
    page.set_input_files(INPUT, sorted(tmp_path.iterdir()))
    bar = page.locator("#progress [role=progressbar]")
    expect(bar).to_have_attribute("aria-valuemax", "400")
    page.wait_for_function("document.querySelectorAll('#gallery .cell').length > 5")
    expect(page.locator("#progress p")).to_contain_text(" of 400")
    expect(page.locator("#progress p")).to_contain_text("s left")
    page.locator("#gallery .cell").nth(2).click()  # meanwhile
    expect(page.locator("#detail .file")).to_have_text("002.jpg")
    page.get_by_role("button", name="Stop").click()
    expect(bar).to_have_count(0)
    expect(page.locator("#summary b")).to_contain_text("pictures")
    n = int(page.locator("#summary b").inner_text().split()[0])
    assert 5 < n < 400
    pictures(page, n)
    page.set_input_files(INPUT, sorted(tmp_path.iterdir())[:2])
    pictures(page, n + 2)


@pytest.mark.slow
def test_pictures_added_during_a_run_are_classified_too(opened, files, tmp_path):
    """Pictures that are chosen, and an example that is clicked, while others are classified; one file is too large."""
    expect, page = playwright.expect, opened()
    for i in range(60):
        (tmp_path / f"{i:03}.jpg").write_bytes(encoded(picture(i, (1200, 900)), "JPEG"))
    (tmp_path / "clip.mov").write_bytes(bytes(MAX_BYTES + 1))
    many = sorted(tmp_path.glob("*.jpg"))
    page.set_input_files(INPUT, many)
    expect(page.locator("#progress [role=progressbar]")).to_have_attribute("aria-valuemax", "60")
    page.set_input_files(INPUT, [files[0], tmp_path / "clip.mov", files[1]])
    page.locator("#examples button").first.click()
    pictures(page, 64)
    expect(page.locator("#summary li")).to_have_text("clip.mov: more than 30 MB")


@pytest.mark.parametrize("first", ["upload", "example"])
def test_runs_that_start_together_keep_all_pictures(opened, tmp_path, first):
    """A slow network lets two runs of one visit start together, and in either order."""
    page = opened()
    for i in range(30):
        (tmp_path / f"{i:03}.jpg").write_bytes(encoded(picture(i, (1200, 900)), "JPEG"))
    held = []
    page.route("**/queue/join**", lambda route: held.append(route) if len(held) < 2 else route.continue_())
    page.locator("#examples button").first.click()
    page.set_input_files(INPUT, sorted(tmp_path.iterdir()))
    while len(held) < 2:
        page.wait_for_timeout(100)
    for route in held if first == "example" else reversed(held):
        route.continue_()
        page.wait_for_timeout(20)
    pictures(page, 31)


def test_the_newest_choice_of_model_and_picture_is_shown(opened, models, tmp_path):
    """Another model is chosen while pictures are classified, and several pictures are clicked before one is
    explained.
    """
    expect, page = playwright.expect, opened()
    for i in range(60):
        (tmp_path / f"{i:03}.jpg").write_bytes(encoded(picture(i, (1200, 900)), "JPEG"))
    files = sorted(tmp_path.iterdir())
    page.set_input_files(INPUT, files)
    page.locator("#gallery .cell").nth(2).wait_for()
    page.get_by_label("Model").click()
    page.get_by_role("option", name="second").click()
    pictures(page, 60)
    expect(page.locator("#header")).to_contain_text("second")
    expect(page.locator("#gallery .said")).to_have_text(said(load_predictor(models[1]), files))
    expect(page.locator("#detail h3").first).to_have_text("second")

    page.evaluate(
        """async () => {
            for (const i of [5, 6, 7]) {
                document.querySelectorAll('#gallery .cell')[i].click();
                await new Promise(done => setTimeout(done, 5));
            }
        }"""
    )
    expect(page.locator("#detail .file")).to_have_text("007.jpg")
    expect(page.locator("#detail img")).to_have_count(4)
    page.wait_for_timeout(1000)  # milliseconds, for what might still come
    expect(page.locator("#detail .file")).to_have_text("007.jpg")
    expect(page.locator("#gallery [aria-pressed=true]")).to_have_attribute("data-index", "7")
    assert has_whole_rows(page)
    tiles, detail, tile = (page.locator(it).first.bounding_box() for it in ("#gallery .cells", "#detail", ".cell"))
    below = detail["y"] + detail["height"] - tiles["y"] - tiles["height"]
    assert 0 <= below < tile["height"] + 8  # as high as the detail view beside it, to a row and the gap of 8 pixels

    page.set_input_files(
        INPUT, files[:1]
    )  # it is shown when it is classified, and the other again, while this is explained
    pictures(page, 61)
    page.evaluate("document.querySelectorAll('#gallery .cell')[7].click()")
    page.wait_for_timeout(1000)
    expect(page.locator("#detail .file")).to_have_text("007.jpg")
    page.get_by_text("All results as a table").click()
    page.locator("#table [data-row='0'][data-col='1']").click()
    expect(page.locator("#gallery [aria-pressed=true]")).to_have_attribute("data-index", "0")
    expect(page.locator("#detail .file")).to_be_in_viewport()


@pytest.mark.slow
def test_only_the_first_500_files_are_taken(opened, tmp_path):
    page = opened()
    content = encoded(picture(0, (32, 32)))
    for i in range(validation.MAX_FILES + 3):
        (tmp_path / f"{i:03}.png").write_bytes(content)
    page.set_input_files(INPUT, sorted(tmp_path.iterdir()))
    playwright.expect(page.get_by_text("503 files: the first 500 are taken.")).to_be_visible()
    pictures(page, validation.MAX_FILES)


@pytest.mark.slow
def test_the_webcam(opened):
    page = opened()
    page.get_by_role("button", name="Webcam").click()
    page.wait_for_function("document.querySelector('#upload-buttons video').videoWidth > 0")
    page.get_by_role("button", name="Take the picture").click()
    pictures(page, 1)
    playwright.expect(page.locator("#detail .file")).to_have_text("webcam.jpg")


@pytest.mark.slow
def test_large_pictures_are_made_smaller_before_they_are_sent(opened, tmp_path_factory):
    """A photograph of 12 megapixels that lies on its side, one with transparent parts, and a large file that is no
    picture.
    """
    expect, folder, model = playwright.expect, tmp_path_factory.mktemp("large"), ROOT / "models" / "cnn"
    grain = np.random.default_rng(0).normal(0, 8, (3000, 4000, 1))
    photograph = (
        Image.open(ROOT / "examples" / "cat_1.jpg").convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
    )
    photograph = Image.fromarray((np.asarray(photograph) + grain).clip(0, 255).astype(np.uint8))
    lies = Image.Exif()
    lies[0x0112] = 6  # orientation: a viewer turns it by 90 degrees
    photograph.transpose(Image.Transpose.ROTATE_90).save(folder / "lies.jpg", exif=lies, quality=90)
    ship = Image.open(ROOT / "examples" / "ship_1.png").convert("RGB").resize((1500, 1000))
    ship.putalpha(Image.linear_gradient("L").resize(ship.size))
    ship.save(folder / "fades.png", compress_level=0)
    (folder / "text.jpg").write_bytes(b"no image" * 200_000)
    files = [folder / name for name in ("lies.jpg", "fades.png", "text.jpg")]
    assert all(file.stat().st_size > 1_500_000 for file in files)

    work = tmp_path_factory.mktemp("app")
    with running_app([model], work) as (address, _):
        page = opened(address=address)
        page.set_input_files(INPUT, files)
        pictures(page, 3)
        expect(page.locator("#summary li")).to_contain_text("text.jpg: not an image")
        sent = {
            path.name: path.stat().st_size
            for path in (work / "uploads").rglob("*")
            if path.name in [file.name for file in files]
        }
        assert sent.pop("text.jpg") == 1_600_000 and len(sent) == 2 and sum(sent.values()) < 200_000
        predictor = load_predictor(model)
        for i, row in enumerate(predictor.probabilities(files[:2])):
            page.locator("#gallery .cell").nth(i).click()
            expect(page.locator("#detail .file")).to_have_text(files[i].name)
            [top] = predictor.top(row, 1)
            expect(page.locator("#detail h2")).to_contain_text(top["label"])
            shown = float(page.locator("#detail h2 small").inner_text().rstrip("%")) / 100
            assert shown == pytest.approx(top["score"], abs=0.03)
        page.close()
