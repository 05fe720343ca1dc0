"""What a model makes of photographs that are sorted by label."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from classifier import load_predictor
from classifier.errors import DataError
from classifier.evaluation.photographs import list_photographs, measure
from classifier.models import logit_scores
from tests.helpers.paths import ROOT
from tests.helpers.pictures import picture


def test_accuracy_kept_and_flagged_by_hand(tmp_path):
    """Four pictures in the folders of labels, one of them wrong, and two in `none`; a threshold between them."""
    predictor = load_predictor(ROOT / "models/cnn")
    predictor.ood_resize_to = None
    pictures = [picture(seed) for seed in range(6)]
    logits = predictor.logits(pictures)
    order = logit_scores.energy(logits).argsort()  # from the least known
    predictor.ood_threshold = float(logit_scores.energy(logits)[order[2]])  # the first two are below it
    labels = [predictor.labels[i] for i in logits.argmax(axis=1)]
    wrong = next(label for label in predictor.labels if label != labels[order[0]])
    names = [wrong, "none", "none", *(labels[i] for i in order[3:])]
    for name, index in zip(names, order, strict=True):
        save(pictures[index], tmp_path / "mine" / name / f"{index}.png")
    (tmp_path / "mine/none/.DS_Store").write_text("litter")
    result = measure(predictor, tmp_path / "mine")
    assert (result.folder, result.n, result.n_none) == ("mine", 4, 2)
    assert (result.accuracy, result.kept, result.flagged) == (0.75, 0.75, 0.5)
    assert result.accuracy_ci95[0] < 0.75 < result.accuracy_ci95[1]
    (tmp_path / "mine/none/broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"broken\.jpg, or pass --skip_unreadable"):
        measure(predictor, tmp_path / "mine")
    assert measure(predictor, tmp_path / "mine", skip_unreadable=True) == replace(result, n_skipped=1)
    (tmp_path / "mine/none/broken.jpg").unlink()
    predictor.ood_threshold = None
    without = measure(predictor, tmp_path / "mine")
    assert (without.accuracy, without.kept, without.flagged) == (0.75, None, None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "horsefly"], "no labels (horsefly)"),
        (["none"], "no photographs in folders named as labels"),
        ([], "no"),
    ],
)
def test_a_folder_that_does_not_fit_is_told(names, message, tmp_path):
    for name in names:
        save(picture(), tmp_path / name / "a.png")
    with pytest.raises(DataError) as raised:
        list_photographs(tmp_path, ["cat", "horse"])
    assert message in str(raised.value)


def test_a_label_may_not_be_called_none(tmp_path):
    save(picture(), tmp_path / "cat/a.png")
    assert len(list_photographs(tmp_path, ["cat", "none"])) == 1
    save(picture(), tmp_path / "none/a.png")
    with pytest.raises(DataError, match="--label_names"):
        list_photographs(tmp_path, ["cat", "none"])


def test_a_folder_of_which_nothing_is_readable_is_told(tmp_path):
    predictor = load_predictor(ROOT / "models/cnn")
    save(picture(), tmp_path / "none/a.png")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match="no photograph of a label"):
        measure(predictor, tmp_path, skip_unreadable=True)


def test_folders_are_labels_whatever_they_are_called_and_may_have_folders(tmp_path):
    """CIFAR-100 has a class `train`, which would be a split elsewhere."""
    for path in ("train/a.png", "train/steam/b.png", "test/c.png"):
        save(picture(), tmp_path / path)
    (tmp_path / "cat").mkdir()
    found = list_photographs(tmp_path, ["cat", "test", "train"])
    assert [(path.name, label) for path, label in found] == [("c.png", "test"), ("a.png", "train"), ("b.png", "train")]


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
