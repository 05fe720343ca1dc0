"""Draws docs/app.png, the README's picture: the running page with some examples dropped on it.

python docs/screenshot.py http://127.0.0.1:7860 [--width 1280] [--theme light] [--output docs/app.png]
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def main() -> None:
    """Opens the page in Debian's chromium, uploads, waits for the answer, takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the running app")
    parser.add_argument("--width", type=int, default=1280, help="of the window, in pixels (%(default)s)")
    parser.add_argument("--height", type=int, default=1050, help="of the window, in pixels (%(default)s)")
    parser.add_argument("--theme", choices=("light", "dark"), default="light", help="(%(default)s)")
    parser.add_argument("--output", default="docs/app.png", help="(%(default)s)")
    args = parser.parse_args()

    pictures = sorted(EXAMPLES.glob("*_1.*"))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": args.width, "height": args.height})
        page.goto(f"{args.url}/?__theme={args.theme}")
        page.set_input_files("#files input[type=file]", pictures)
        page.locator("#gallery .caption-label").nth(len(pictures) - 1).wait_for()
        page.wait_for_timeout(1500)  # milliseconds, for transitions to end
        page.screenshot(path=args.output)
        browser.close()


if __name__ == "__main__":
    main()
