"""The scratch CNN's file: what it needs of other versions of transformers, and the weights that it starts from."""

import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.activations import ACT2FN

from classifier.models import cnn
from classifier.models.loading import load_weights
from tests.helpers.models import save_tiny_cnn

# Names that both transformers 4.46 and 5 have, as checked by loading the file with 4.46, 4.48, 4.57 and 5.
SINCE_4_46 = {
    "transformers": {
        "AutoConfig",
        "AutoImageProcessor",
        "AutoModelForImageClassification",
        "PreTrainedModel",
        "PretrainedConfig",
        "ViTImageProcessor",
        "__version__",
    },
    "transformers.activations": {"ACT2FN"},
    "transformers.modeling_outputs": {"ImageClassifierOutputWithNoAttention"},
}


def test_the_file_imports_only_what_old_versions_of_transformers_have():
    tree = ast.parse(Path(cnn.__file__).read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import) and "transformers" in ast.dump(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
            assert {alias.name for alias in node.names} <= SINCE_4_46[node.module]


def test_hardswish_does_not_come_from_transformers(monkeypatch):
    """transformers 4 has no activation of this name."""
    monkeypatch.delitem(ACT2FN, "hardswish")
    config = cnn.CifarCnnConfig(widths=[16], depths=[1], hidden_act="hardswish")
    assert isinstance(cnn.CifarCnnForImageClassification(config).act, torch.nn.Hardswish)


def test_layers_start_as_the_identity():
    config = cnn.CifarCnnConfig(widths=[32, 40], depths=[1, 2], hidden_act="hardswish")
    [first], [second, third] = (stage.convs for stage in cnn.CifarCnnForImageClassification(config).stages)
    for conv, channels in ((first, 24), (second, 32), (third, 40)):
        identity = torch.zeros(channels, channels, 3, 3)
        identity[range(channels), range(channels), 1, 1] = 1
        assert torch.equal(conv.weight[:channels], identity)
        assert conv.weight[channels:].numel() == 0 or conv.weight[channels:].std() > 0.01


@pytest.mark.parametrize("missing", ["whiten.bias", "stages.0.norms.0.weight", "stages.1.convs.0.weight"])
def test_weights_of_a_file_stay_where_another_is_missing(missing, tmp_path):
    folder = save_tiny_cnn(tmp_path / "cnn")
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    del weights[missing]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model, reported = load_weights(folder)
    assert reported == [missing]
    found = model.state_dict()
    assert all(
        torch.equal(found[name], tensor.float()) for name, tensor in weights.items() if tensor.is_floating_point()
    )
    assert found[missing].isfinite().all()
