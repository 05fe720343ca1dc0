"""The logic of the page's JavaScript, by Node's own test runner; the rest of it is in test_browser.py."""

import shutil
import subprocess

import pytest

from tests.helpers.paths import ROOT

NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="needs Node 20: apt-get install nodejs")
def test_javascript():
    tests = sorted((ROOT / "tests" / "space" / "static").glob("*.test.js"))
    run = subprocess.run([NODE, "--test", *tests], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout
