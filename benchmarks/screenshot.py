"""Draws docs/app.png, the README's picture: three moments of the running page, side by side.

    MODELS= python app.py                                       # in another shell, with the embedded models
    python -m benchmarks.screenshot http://127.0.0.1:7860

The moments are a gallery with one picture in detail, the tab Compare, and the page on a phone in dark mode. Needs
Debian's chromium.
"""

import argparse
import io
import shutil
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, sync_playwright

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
GAP, RADIUS = 24, 14  # pixels between the panels, and of their corners
WIDTH = 1600  # pixels of the whole picture
BORDER = (150, 150, 160, 255)


class Moment(NamedTuple):
    """A view of the page: the tab, the theme, the window in pixels, and the picture that is selected, from 0."""

    tab: str
    theme: str
    width: int
    height: int
    selected: int


GALLERY = Moment("Classify", "light", 1280, 980, 3)
COMPARE = Moment("Compare", "light", 1280, 620, 3)
PHONE = Moment("Classify", "dark", 390, 844, 3)


def main() -> None:
    """Takes the three screenshots and puts them together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the running app")
    parser.add_argument("--output", type=Path, default="docs/app.png", help="PNG file to write (%(default)s)")
    args = parser.parse_args()

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        gallery, compare, phone = (screenshot(chromium, args.url, moment) for moment in (GALLERY, COMPARE, PHONE))
        chromium.close()
    # A palette of 256 colours makes the file a third as large, and the difference can't be seen.
    compose(gallery, compare, phone).quantize(256, method=Image.Quantize.FASTOCTREE).save(args.output, optimize=True)


def screenshot(browser: Browser, url: str, moment: Moment) -> Image.Image:
    """Uploads ten example pictures to the page, waits for the results, and takes a picture of the window."""
    page = browser.new_page(
        viewport={"width": moment.width, "height": moment.height},
        device_scale_factor=2 if moment.width < 500 else 1,
    )
    page.goto(f"{url}/?__theme={moment.theme}")
    page.set_input_files("#files input[type=file]", sorted(EXAMPLES.glob("*_1.*")))
    page.locator("#detail figure").first.wait_for(timeout=120_000)
    page.locator("#gallery button").nth(moment.selected).click()
    page.wait_for_timeout(3000)  # milliseconds, for the heat map and transitions
    page.get_by_role("tab", name=moment.tab).click()
    if moment.tab == "Classify":
        page.locator("#gallery").evaluate("element => element.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(1500)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    return image


def compose(gallery: Image.Image, compare: Image.Image, phone: Image.Image) -> Image.Image:
    """The gallery above the comparison on the left, and the phone beside both, as high as they are together."""
    # The widths solve: left + GAP + right = WIDTH, and left × (both ratios) + GAP = right × (ratio of the phone).
    both, tall = gallery.height / gallery.width + compare.height / compare.width, phone.height / phone.width
    left = round((tall * (WIDTH - GAP) - GAP) / (both + tall))
    panels = [fit(gallery, left), fit(compare, left), fit(phone, WIDTH - GAP - left)]
    canvas = Image.new("RGBA", (WIDTH, max(panels[0].height + GAP + panels[1].height, panels[2].height)))
    for panel, position in zip(panels, [(0, 0), (0, panels[0].height + GAP), (left + GAP, 0)], strict=True):
        canvas.alpha_composite(panel, position)
    return canvas


def fit(image: Image.Image, width: int) -> Image.Image:
    """The image at that width, with rounded corners and a border."""
    size = (width, round(width * image.height / image.width))
    panel = image.resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), RADIUS, fill=255)
    panel.putalpha(mask)
    ImageDraw.Draw(panel).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), RADIUS, outline=BORDER, width=2)
    return panel


if __name__ == "__main__":
    main()
