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
WIDTH = 1600  # pixels of the whole picture
GAP, RADIUS = 24, 14  # pixels around the panels, and of their corners
BACKGROUND, BORDER = (224, 226, 240), (150, 152, 170)


class Moment(NamedTuple):
    """A view of the page.

    Attributes:
        tab: the name of the tab.
        theme: light or dark.
        size: width and height of the window, in pixels.
        pictures: a pattern of the files in examples/ that are classified.
        selected: the index of the picture that is shown in detail.
        top: the element that is scrolled to the top of the window.
    """

    tab: str
    theme: str
    size: tuple[int, int]
    pictures: str
    selected: int
    top: str


GALLERY = Moment("Classify", "light", (1280, 1160), "*_[0-9].*", 9, "body")
COMPARE = Moment("Compare", "light", (1280, 560), "*_1.*", 3, "#tabs")
PHONE = Moment("Classify", "dark", (390, 1300), "*_1.*", 3, "#gallery")


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
    picture = compose(gallery, compare, phone)
    # A palette of 256 colours makes the file a third as large.
    picture.quantize(palette=picture.quantize(256), dither=Image.Dither.FLOYDSTEINBERG).save(args.output, optimize=True)


def screenshot(browser: Browser, url: str, moment: Moment) -> Image.Image:
    """Classifies example pictures on the page, and takes a picture of the window."""
    width, height = moment.size
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=2 if width < 500 else 1)
    page.goto(f"{url}/?__theme={moment.theme}")
    page.set_input_files("#files input[type=file]", sorted(EXAMPLES.glob(moment.pictures)))
    page.locator("#gallery .cell").nth(len(list(EXAMPLES.glob(moment.pictures))) - 1).wait_for(timeout=120_000)
    page.locator("#gallery .cell").nth(moment.selected).click()
    page.locator("#detail figure").first.wait_for(timeout=120_000)
    page.wait_for_timeout(3000)  # milliseconds, for the heat map and transitions
    page.get_by_role("tab", name=moment.tab).click()
    page.locator(moment.top).evaluate("element => element.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(1500)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    return image


def compose(gallery: Image.Image, compare: Image.Image, phone: Image.Image) -> Image.Image:
    """The gallery above the comparison on the left, and the phone beside both, as high as they are together."""
    # The widths solve: left + right = width, and left × both + GAP = right × tall, where these are ratios.
    both, tall = gallery.height / gallery.width + compare.height / compare.width, phone.height / phone.width
    width = WIDTH - 3 * GAP
    left = round((tall * width - GAP) / (both + tall))
    upper, lower, right = (resize(gallery, left), resize(compare, left), resize(phone, width - left))
    canvas = Image.new("RGB", (WIDTH, 2 * GAP + max(upper.height + GAP + lower.height, right.height)), BACKGROUND)
    paste(canvas, upper, GAP, GAP)
    paste(canvas, lower, GAP, 2 * GAP + upper.height)
    paste(canvas, right, 2 * GAP + left, GAP)
    return canvas


def resize(image: Image.Image, width: int) -> Image.Image:
    """The image at that width."""
    return image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)


def paste(canvas: Image.Image, panel: Image.Image, x: int, y: int) -> None:
    """Puts a panel on the canvas, with rounded corners and a border."""
    box = (0, 0, panel.width - 1, panel.height - 1)
    mask = Image.new("L", panel.size)
    ImageDraw.Draw(mask).rounded_rectangle(box, RADIUS, fill=255)
    ImageDraw.Draw(panel).rounded_rectangle(box, RADIUS, outline=BORDER, width=2)
    canvas.paste(panel, (x, y), mask)


if __name__ == "__main__":
    main()
