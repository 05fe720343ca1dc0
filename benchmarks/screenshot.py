"""Draws docs/app.png, the README's picture: the running page with some example pictures classified.

    python -m benchmarks.screenshot http://127.0.0.1:7860
    python -m benchmarks.screenshot http://127.0.0.1:7860 --tab Compare --width 390 --theme dark --output compare.png

The app has to be running.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def main() -> None:
    """Opens the page in Debian's chromium, uploads the pictures, waits for the results, saves a screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the running app")
    parser.add_argument("--tab", default="Classify", help="name of the tab to show (%(default)s)")
    parser.add_argument("--pictures", default="*_1.*", help="pattern of files in examples/ to upload (%(default)s)")
    parser.add_argument("--select", type=int, default=0, help="index of the picture to select, from 0 (%(default)s)")
    parser.add_argument("--width", type=int, default=1280, help="width of the window in pixels (%(default)s)")
    parser.add_argument("--height", type=int, default=980, help="height of the window in pixels (%(default)s)")
    parser.add_argument("--full", action="store_true", help="the whole page, not only the part in the window")
    parser.add_argument("--theme", choices=("light", "dark"), default="light", help="theme of the page (%(default)s)")
    parser.add_argument("--output", default="docs/app.png", help="PNG file to write (%(default)s)")
    args = parser.parse_args()

    pictures = sorted(EXAMPLES.glob(args.pictures))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": args.width, "height": args.height})
        page.goto(f"{args.url}/?__theme={args.theme}")
        page.set_input_files("#files input[type=file]", pictures)
        page.locator("#detail figure").first.wait_for()
        page.locator("#gallery button").nth(args.select).click()
        page.wait_for_timeout(1500)  # milliseconds, for pictures and transitions
        page.get_by_role("tab", name=args.tab).click()
        if args.tab == "About":
            page.locator(".plots img").first.wait_for()
        page.wait_for_timeout(1500)
        page.screenshot(path=args.output, full_page=args.full)
        browser.close()


if __name__ == "__main__":
    main()
