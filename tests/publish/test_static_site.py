"""The static site in a real browser, served with the headers that the Hub sends, compared with Python."""

import csv
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifier import load_predictor
from classifier.errors import ModelError
from classifier.images.workers import decode_many
from classifier.publish import static_site
from tests.helpers.models import save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, picture

playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser: pip install playwright")
CHROMIUM = shutil.which("chromium")
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
    pytest.mark.skipif(not static_site.ENGINE.is_dir(), reason="needs onnxruntime-web: npm ci"),
]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with the headers of the Space's README.md."""

    def guess_type(self, path):
        return "text/javascript" if str(path).endswith(".mjs") else super().guess_type(path)

    def end_headers(self):
        for name, value in static_site.HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def serve() -> Iterator:
    """Serves a folder; gives its address."""
    servers = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_site(browser):
    """Opens a site once its model is loaded; the browser must see no error and no request to another host."""
    faults, pages = [], []

    def open_page(address: str, viewport: dict = DESKTOP, scheme: str = "light"):
        page = browser.new_page(viewport=viewport, color_scheme=scheme)
        pages.append(page)
        page.set_default_timeout(120_000)  # milliseconds
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else faults.append(r.url))
        page.goto(address)
        page.locator("#files:enabled").wait_for(state="attached")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert faults == []


@pytest.fixture(scope="module")
def tiny_site(tmp_path_factory, serve) -> tuple[Path, str, Path]:
    """A random model, the address of its site, and the folder of that."""
    folder = save_tiny_vit(tmp_path_factory.mktemp("models") / "tiny")
    site = tmp_path_factory.mktemp("site")
    static_site.write_site(folder, site)
    return folder, serve(site), site


def classify(page, files: list[Path]) -> list[dict]:
    """The rows of the CSV that the page offers for some files."""
    page.locator("#files").set_input_files(files)
    page.wait_for_function(
        "n => document.querySelector('#status').textContent.startsWith(`${n} of ${n} `)", arg=len(files)
    )
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    with Path(download.value.path()).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_good_and_broken_pictures_become_rows_as_in_the_api(tiny_site, open_site, tmp_path):
    folder, address, _ = tiny_site
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i)))
    (tmp_path / "2.png").write_bytes(b"no picture")
    files = sorted(tmp_path.glob("*.png"))
    page = open_site(address)
    assert page.evaluate("crossOriginIsolated") and "WebAssembly" in page.inner_text("#engine")
    rows = classify(page, files)
    assert [row["file"] for row in rows] == [file.name for file in files]
    assert [row["status"] for row in rows] == ["ok", "ok", "error", "ok", "ok"]
    assert rows[2]["label_1"] == "" and "can’t read" in rows[2]["error"]
    predictor = load_predictor(folder)
    for row, file in zip(rows, files, strict=True):
        if row["status"] == "ok":
            [top, *_] = predictor(file)
            assert row["label_1"] == top["label"] and float(row["probability_1"]) == pytest.approx(
                top["score"], abs=2e-3
            )
    assert "1 unreadable" in page.inner_text("#status")
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#gallery li").count() == 0 and page.inner_text("#status") == ""


def test_names_are_text_and_nothing_is_sent(tiny_site, open_site, tmp_path):
    name = "<img src=x onerror=alert(1)>.png"
    (tmp_path / name).write_bytes(encoded(picture(1)))
    page = open_site(tiny_site[1])
    sent = []
    page.on("request", lambda request: sent.append(request) if request.method != "GET" else None)
    [row] = classify(page, [tmp_path / name])
    assert row["file"] == name and page.locator("#gallery .file").inner_text() == name
    assert page.locator("#gallery img").count() == 1 and sent == []


def test_it_works_without_a_network_once_it_was_loaded(tiny_site, open_site, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    page = open_site(tiny_site[1])
    [first] = classify(page, [tmp_path / "a.png"])
    weights = json.loads((tiny_site[2] / "model.json").read_text())["weights"]
    page.wait_for_function(  # copies are stored while the page is used
        "async names => (await Promise.all(names.map(name => caches.match(name)))).every(Boolean)",
        arg=["./", weights],
    )
    page.context.set_offline(True)
    page.reload()
    page.locator("#files:enabled").wait_for(state="attached")
    [again] = classify(page, [tmp_path / "a.png"])
    page.context.set_offline(False)
    assert again == first


@pytest.mark.parametrize(("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone-dark"])
def test_the_page_fits_and_is_accessible(viewport, scheme, tiny_site, open_site, tmp_path):
    (tmp_path / f"{'long' * 20}.png").write_bytes(encoded(picture(1)))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = open_site(tiny_site[1], viewport, scheme)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"  # the first thing that the keyboard reaches
    classify(page, list(tmp_path.glob("*.png")))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.add_script_tag(path=AXE)
    violations = page.evaluate("axe.run().then(found => found.violations.map(each => each.help))")
    assert violations == []


@pytest.mark.slow
def test_photographs_get_the_labels_and_marks_that_python_gives(open_site, serve, tmp_path):
    """200 parts of the example pictures, as JPEG at sizes of the web and of phones."""
    rng = np.random.default_rng(0)
    examples = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples").glob("*.jpg"))]
    for i in range(200):
        image = examples[i % len(examples)]
        share = rng.uniform(0.5, 1, 2)
        width, height = (max(1, int(each)) for each in share * image.size)
        left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        size = [int(side * rng.uniform(0.8, 4)) for side in (width, height)]
        image.crop((left, top, left + width, top + height)).resize(size).save(tmp_path / f"{i:03}.jpg", quality=90)
    files = sorted(tmp_path.glob("*.jpg"))
    site = tmp_path / "site"
    static_site.write_site(ROOT / "models" / "vit", site)
    rows = classify(open_site(serve(site)), files)
    predictor = load_predictor(ROOT / "models" / "vit")
    probabilities, known = predictor.predict_with_ood(list(decode_many(files, reduce_to=predictor.reduce_to)))
    labels = [predictor.labels[i] for i in probabilities.argmax(axis=1)]
    others = sum(row["label_1"] != label for row, label in zip(rows, labels, strict=True))
    marks = sum((row["known"] == "True") != each for row, each in zip(rows, known, strict=True))
    differences = [abs(float(row["probability_1"]) - p.max()) for row, p in zip(rows, probabilities, strict=True)]
    assert others <= 1 and marks <= 4
    assert np.percentile(differences, 95) < 0.03


def test_another_model_replaces_the_weights_of_an_earlier_site(tmp_path):
    names = []
    for seed in range(2):
        static_site.write_site(save_tiny_vit(tmp_path / f"tiny{seed}", seed=seed), tmp_path / "site")
        [weights] = (tmp_path / "site").glob("model-*.onnx")
        assert weights.name == json.loads((tmp_path / "site" / "model.json").read_text())["weights"]
        names.append(weights.name)
    assert names[0] != names[1]


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ModelError, match="holds other files than a site: name another --output_dir"):
        static_site.write_site(save_tiny_vit(tmp_path / "tiny"), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_processor_that_the_page_can_not_follow_is_told(tmp_path):
    folder = save_tiny_vit(tmp_path / "tiny")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875, "size": {"shortest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="does not resize, crop and normalise pictures to one size"):
        static_site.write_site(folder, tmp_path / "site")
    assert not (tmp_path / "site").exists()
