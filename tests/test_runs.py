"""The records of a run: what is written is read again, and what is missing is named."""

import json
from pathlib import Path

import pytest

from classifier.errors import ModelError
from classifier.records import Evaluation, ModelEvaluation, RunRecord, Timing
from classifier.runs import PULLED, PUSHED, REPLACED, RunFolder
from tests.helpers.evaluations import evaluation

ROOT = Path(__file__).resolve().parent.parent
RUN = {
    "command": "train.py",
    "settings": {"dataset": "user/pictures"},
    "versions": {"torch": "2.14.1"},
    "machine": {"processor": "Abacus", "threads": 1},
    "data": {"images": 10},
    "validation": {"accuracy": 0.5},
}
FOLDERS = [*sorted(config.parent for config in (ROOT / "models").glob("*/config.json")), ROOT / "report"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize(("name", "record"), [("evaluation.json", Evaluation), ("timing.json", Timing)])
def test_a_record_that_is_read_and_written_has_the_same_bytes(folder, name, record, tmp_path):
    record.read(folder / name).write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": {"nll": 1.0}}, 'run.json: "validation" has no "accuracy": train the model again'),
        (
            {"validation": {"accuracy": "high"}},
            'run.json: "validation.accuracy" is not a number: train the model again',
        ),
        ({"parent": RUN | {"data": {}}}, 'run.json: "parent.data" has no "images": train the model again'),
        ({"settings": {}}, 'run.json: "settings" has no "dataset": train the model again'),
        ({"machine": []}, 'run.json: "machine" is not a JSON object: train the model again'),
        ({"data": {"images": 1, "labels": [1]}}, 'run.json: "data.labels[0]" is not a string: train the model again'),
    ],
)
def test_a_missing_or_wrong_key_is_named_with_its_file(changes, message, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(RUN | changes))
    with pytest.raises(ModelError) as error:
        RunFolder(tmp_path).run  # noqa: B018
    assert str(error.value) == f"{tmp_path}/{message}"


def test_a_folder_without_records_has_none_and_says_so_when_one_is_needed(tmp_path):
    folder = RunFolder(tmp_path)
    assert (folder.run, folder.evaluation, folder.timing, folder.stages, folder.history) == (None, None, None, [], [])
    with pytest.raises(ModelError, match=r"no run.json in .*: give a folder that train.py or finetune_vit.py"):
        folder.finished_run()


def test_stages_come_in_the_order_in_which_they_were_trained(tmp_path):
    record = RunRecord.from_json(RUN | {"command": "second", "parent": RUN | {"command": "first"}}, tmp_path)
    RunFolder(tmp_path).write_run(record)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert [stage.command for stage in RunFolder(tmp_path).stages] == ["first", "second"]
    assert RunFolder(tmp_path).as_parent().model_sha256.startswith("9a129038")


def test_a_models_folder_has_the_evaluation_of_one_model(tmp_path):
    path, two = tmp_path / "evaluation.json", evaluation(["cat", "dog"])
    path.write_text(json.dumps(two | {"models": two["models"] * 2}))
    with pytest.raises(ModelError, match=r'"models" has 2 entries instead of one: run evaluate.py again'):
        RunFolder(tmp_path).evaluation  # noqa: B018
    path.write_text('{"eval_accuracy": 0.9}')
    assert RunFolder(tmp_path).evaluation is None, "another program's file"


def test_results_on_out_of_distribution_images_are_read_by_their_old_name():
    [model] = evaluation(["cat", "dog"])["models"]
    record = ModelEvaluation.from_json(model | {"strangers": {"energy": {"noise": {"auroc": 1, "fpr95": 0}}}}, Path())
    assert record.ood["energy"]["noise"].auroc == 1


def test_stale_files_go_and_the_others_stay(tmp_path):
    for name in ("run.json", "evaluation.json", "README.md", "model.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    RunFolder(tmp_path).remove_stale()
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "notes.txt"}
    assert set(PULLED) < set(REPLACED) < set(PUSHED)
