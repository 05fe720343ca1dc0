"""Each picture in examples/ has a row that tells its label, source and licence, and is small."""

import re

from PIL import Image

from tests.helpers.paths import ROOT

EXAMPLES = ROOT / "examples"
LABELS = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
LICENCES = re.compile(r"CC0-1\.0|CC-BY(-SA)?-\d\.\d|GPL-2\.0-or-later|public domain|none stated \(1\)")


def test_each_example_states_its_licence():
    pictures = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".jpg", ".png"))
    rows = {}
    for line in (EXAMPLES / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            file, label, source, author, licence = (cell.strip() for cell in line.strip("|").split("|"))
            assert source and author and LICENCES.match(licence), line
            assert ("CIFAR-10" in source) == licence.startswith("none stated")
            rows[file.strip("`")] = label
    assert list(rows) == [path.name for path in pictures]
    assert len(rows) >= 10
    assert set(rows.values()) == LABELS
    assert all(file.startswith(label + "_") for file, label in rows.items())


def test_examples_are_small_and_most_are_photographs():
    pictures = [path for path in EXAMPLES.iterdir() if path.suffix in (".jpg", ".png")]
    sides = [max(Image.open(path).size) for path in pictures]
    assert max(sides) <= 640
    assert sum(side > 32 for side in sides) > len(sides) / 2
    assert max(path.stat().st_size for path in pictures) < 150_000
    assert sum(path.stat().st_size for path in pictures) < 1_500_000
