"""Heat maps against cases worked by hand, against pictures whose telling part is known, and beside other threads."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from classifier import load_predictor
from classifier.errors import ModelError
from classifier.models import cnn, explain
from classifier.models.predictor import Predictor
from tests.helpers.models import BACKBONES, LABELS, save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import picture

RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 255
SMALL = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SWIN = {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0}
RAMP = [1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0]  # 1 and 0, four pixels each, between their centres


class ByHand(nn.Module):
    """The mean of red and of blue in each 4×4 pixels as a map of two channels; a label for red, and one for blue."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(num_labels=2, id2label={0: "red", 1: "blue"})
        self.conv = nn.Conv2d(3, 2, 4, stride=4, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[[0, 1], [0, 2]] = 1 / 16
            self.head.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))

    def forward(self, pixel_values):
        return ImageClassifierOutputWithNoAttention(logits=self.head(self.conv(pixel_values).relu().mean(dim=(2, 3))))


class NoMap(nn.Module):
    """Tokens of a patch each that a recurrent network reads: nothing that a heat map could be made of."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(num_labels=10, id2label=dict(enumerate(LABELS)))
        self.read, self.head = nn.GRU(3 * 32, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, pixel_values):
        rows = pixel_values.transpose(1, 2).flatten(2)  # (N, 32, 96)
        return ImageClassifierOutputWithNoAttention(logits=self.head(self.read(rows)[0][:, -1]))


def processor(size: int, **settings) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size}, **settings)


def timm_model(architecture: str, num_classes: int = 10, **model_args) -> TimmWrapperForImageClassification:
    settings = {
        "architecture": architecture,
        "num_classes": num_classes,
        "model_args": model_args,
        "pretrained_cfg": {},
    }
    return TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(settings))


def predictor_of(make, size: int = 32) -> Predictor:
    torch.manual_seed(0)
    return Predictor(make(), processor(size), name="made here")


def quadrants(upper_left: np.ndarray, lower_right: np.ndarray) -> Image.Image:
    """Black, 8×8, but for two quarters."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4], pixels[4:, 4:] = upper_left, lower_right
    return Image.fromarray(pixels)


@pytest.fixture
def by_hand() -> Predictor:
    return Predictor(ByHand(), processor(8, do_normalize=False), name="by hand")


def test_grad_cam_by_hand(by_hand):
    """red's map is 1 in the upper left, blue's in the lower right; with weights 1/4 and -1/4, red speaks for label
    0.
    """
    image = quadrants(RED, BLUE)
    red = np.outer(RAMP, RAMP)
    np.testing.assert_allclose(explain.heatmap(by_hand, image, 0), red, atol=1e-6)
    np.testing.assert_allclose(explain.heatmap(by_hand, image, 1), red[::-1, ::-1], atol=1e-6)
    np.testing.assert_allclose(
        explain.heatmap(by_hand, quadrants(RED // 2, RED), 0)[[0, -1], [0, -1]], [127 / 255, 1], atol=1e-6
    )


def test_nothing_that_speaks_for_the_label_is_nowhere_hot(by_hand):
    assert (explain.heatmap(by_hand, quadrants(RED, RED), 1) == 0).all()


def test_a_head_of_zeros_is_nowhere_hot(colour_vit):
    nn.init.zeros_(colour_vit.model.classifier.weight)
    assert (explain.heatmap(colour_vit, picture()) == 0).all()


def test_the_default_label_is_the_most_probable(by_hand):
    for image, label in ((quadrants(RED, BLUE // 2), 0), (quadrants(RED // 2, BLUE), 1)):
        assert (explain.heatmap(by_hand, image) == explain.heatmap(by_hand, image, label)).all()


def test_relevance_by_hand():
    """A class token and two patches, two layers; of the second, the classifier reads the class token alone.

    Second layer, gradients 1: row 0 passes on (0.5, 0.3, 0.2); with itself the class token has 1.5. First layer, mean
    of two
    heads whose negative products become 0: A = [[0, 0.1, 0.3], [0, 0, 0.4], [0.5, 0, 0]]. (1.5, 0.3, 0.2) · A is
    (0.1, 0.15, 0.45 + 0.12), which adds to the (0.5, 0.3, 0.2) of before.
    """
    second = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.9, 0.1, 0.0]]])
    first = torch.tensor([[[0.2, 0.2, 0.6], [0.1, 0.1, 0.8], [0.5, 0.2, 0.3]]] * 2)
    gradients = torch.tensor(
        [
            [[-1.0, 1.0, 1.0], [-1.0, 0.0, 1.0], [2.0, 0.0, -1.0]],
            [[0.0, -1.0, -9.0], [0.0, -2.0, 0.0], [0.0, -1.0, 0.0]],
        ]
    )
    found = explain.token_relevance(
        [first, second], [gradients, torch.ones_like(second)], torch.tensor([1.0, 0.0, 0.0])
    )
    np.testing.assert_allclose(found, [0.6, 0.45, 0.77], atol=1e-6)


@pytest.fixture
def colour_vit() -> Predictor:
    """A ViT of one layer whose class token reads coloured patches, of +1 for red and -1 for blue; two labels weigh
    that.

    A patch is (10 red, 10 blue, 1, -1), red and blue its means in [0, 1]; the class token is (0, 0, 1, -1), as black
    is.
    """
    shape = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    names = {"id2label": {0: "red", 1: "blue"}, "label2id": {"red": 0, "blue": 1}}
    model = ViTForImageClassification(ViTConfig(**shape, image_size=32, patch_size=8, **names))
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}

    def put(ending: str, values: torch.Tensor) -> None:
        [name] = [name for name in state if name.endswith(ending)]
        state[name] += values

    for name in state:
        if "layernorm" in name and name.endswith("weight"):
            state[name] += 1
    tint, rest = torch.zeros(4, 3, 1, 1), torch.tensor([0.0, 0.0, 1.0, -1.0])
    tint[0, 0] = tint[1, 2] = 10 / 64  # of 8×8 pixels
    put("projection.weight", tint)
    put("projection.bias", rest)
    put("cls_token", rest)
    put("q_proj.bias", torch.tensor([20.0, 0.0, 0.0, 0.0]))
    put("k_proj.weight", torch.tensor([[1.0, 1.0, 0.0, 0.0]] + [[0.0] * 4] * 3))
    put("v_proj.weight", torch.tensor([[1.0, -1.0, 0.0, 0.0]] + [[0.0] * 4] * 3))
    put("o_proj.weight", torch.eye(4))
    put("classifier.weight", torch.tensor([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]))
    model.load_state_dict(state)
    return Predictor(model, processor(32, do_normalize=False), name="colours")


@pytest.mark.parametrize("red", [(0, 0), (0, 3), (3, 0), (3, 3), (1, 2)])
def test_attention_by_hand(colour_vit, red):
    """What is read of red speaks for label 0 and what is read of blue against it, and black says nothing."""
    blue, pixels = (3 - red[0], (red[1] + 2) % 4), np.zeros((32, 32, 3), np.uint8)
    cells = pixels.reshape(4, 8, 4, 8, 3)
    cells[red[0], :, red[1]], cells[blue[0], :, blue[1]] = RED, BLUE
    for label, (row, column) in enumerate((red, blue)):
        alone = torch.zeros(4, 4)
        alone[row, column] = 1
        expected = explain.upsample(alone, (32, 32))
        found = explain.heatmap(colour_vit, Image.fromarray(pixels), label)
        np.testing.assert_allclose(found, expected / expected.max(), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "readout"),
    [
        (lambda: ViTForImageClassification(ViTConfig(**SMALL, num_labels=10)), "class"),
        (
            lambda: BeitForImageClassification(BeitConfig(**SMALL, num_labels=10, use_relative_position_bias=True)),
            "patches",
        ),
        (lambda: Dinov2ForImageClassification(Dinov2Config(**SMALL, num_labels=10)), "both"),
        (lambda: timm_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2), "class"),
        (lambda: timm_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, reg_tokens=4), "class"),
    ],
    ids=["vit", "beit", "dinov2", "timm", "timm with registers"],
)
def test_attention_is_what_the_model_computes(make, readout):
    """The same logits and weights as where attention is not fused, and the classifier reads what its architecture
    says.
    """
    predictor = predictor_of(make)
    model, pixel_values = predictor.model, predictor.pixel_values([picture()])
    with explain.Recorder((32, 32)) as recorded:
        logits = model(pixel_values).logits
    with torch.no_grad():
        torch.testing.assert_close(logits, model(pixel_values).logits, atol=1e-5, rtol=0)
    assert recorded.attends_globally() and len(recorded.attentions) == 2
    for weights in recorded.attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    if not isinstance(model, TimmWrapperForImageClassification):
        model.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with explain.Recorder((32, 32)) as eager:
        model(pixel_values)
    for ours, theirs in zip(recorded.attentions, eager.attentions, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)

    (gradient,) = torch.autograd.grad(logits[0, 3], [recorded.tokens])
    read = gradient[0].norm(dim=-1) > 0  # (T,)
    prefix = len(read) - 16
    assert read[0].item() is (readout != "patches") and not read[1:prefix].any()
    assert read[prefix:].all().item() is (readout != "class")
    heat = explain.heatmap(predictor, picture(), 3)
    assert heat.shape == (32, 32) and heat.dtype == np.float32 and heat.min() >= 0 and heat.max() == 1


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: SwinForImageClassification(SwinConfig(**SWIN, patch_size=4, image_size=32, num_labels=10)), 32),
        (lambda: timm_model("swin_tiny_patch4_window7_224", **SWIN, img_size=32), 32),
        (lambda: MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.25, num_labels=10)), 64),
        (lambda: timm_model("tf_efficientnet_lite0"), 64),
    ],
    ids=["swin", "timm's swin", "mobilenet_v2", "timm's efficientnet"],
)
def test_the_last_feature_map_is_what_is_averaged(make, size):
    """Where a linear layer reads the mean of the map, map times gradient sums up to the logit without the bias."""
    predictor = predictor_of(make, size)
    with explain.Recorder((size, size)) as recorded:
        logits = predictor.model(predictor.pixel_values([picture()])).logits
    assert not recorded.attends_globally()
    (gradient,) = torch.autograd.grad(logits[0, 3], [recorded.features])
    features, gradient = recorded.channels_first(recorded.features), recorded.channels_first(gradient)
    assert features.ndim == 3 and features.shape[1] == features.shape[2] > 1
    torch.testing.assert_close(gradient, gradient[:, :1, :1].expand_as(gradient))  # it is a mean
    *_, bias = (parameter for name, parameter in predictor.model.named_parameters() if name.endswith("bias"))
    assert (features * gradient).sum().item() == pytest.approx((logits[0, 3] - bias[3]).item(), abs=1e-5)
    heat = explain.heatmap(predictor, picture())
    assert heat.shape == (size, size) and heat.min() >= 0 and heat.max() in (0, 1)


def test_the_last_feature_map_of_a_convnext():
    predictor = predictor_of(lambda: ConvNextForImageClassification(ConvNextConfig(**CONVNEXT, num_labels=10)))
    with explain.Recorder((32, 32)) as recorded:
        last = predictor.model(predictor.pixel_values([picture()]), output_hidden_states=True).hidden_states[-1]
    assert last.shape == (1, 16, 4, 4) and recorded.channels_first(recorded.features).equal(last[0])


def test_a_grid_that_is_not_square():
    assert explain.grid_shape(197, (224, 224)) == (14, 14) and explain.grid_shape(1 + 14 * 28, (224, 448)) == (14, 28)
    recorder = explain.Recorder((100, 150))
    assert (
        recorder.is_grid(4, 5) and recorder.is_grid(4, 6) and not recorder.is_grid(6, 4) and not recorder.is_grid(1, 1)
    )


def test_a_scratch_cnns_cells_lie_where_they_look():
    """The pixels that the middle cell of its 3×3 map depends on are as far to all sides of where its heat is put."""
    torch.manual_seed(0)
    model = scratch_cnn(depths=(1, 1, 1)).eval()
    pixel_values = torch.randn(200, 3, 32, 32, requires_grad=True)  # which pixels max pooling passes on differs
    features = model.forward_features(pixel_values)  # (200, 32, 3, 3)
    (gradient,) = torch.autograd.grad(features[:, :, 1, 1].sum(), [pixel_values])
    rows = gradient.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
    middle = (rows[0] + rows[-1]).item() / 2
    cell = torch.zeros(3, 3)
    cell[1, 1] = 1
    heat = explain.upsample(cell, (32, 32), explain.stride_of(model)).sum(dim=1)
    assert (heat @ torch.arange(32.0) / heat.sum()).item() == pytest.approx(middle, abs=0.6)


def scratch_cnn(**config) -> cnn.CifarCnnForImageClassification:
    return cnn.CifarCnnForImageClassification(cnn.CifarCnnConfig(widths=(16, 32, 32), num_labels=4, **config))


def coloured(labels: torch.Tensor, cells: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Grey noise, uint8 (N, 3, 32, 32), but for one 8×8 cell of 16 in red, green or blue (labels 0 to 2), or for none
    (3).
    """
    images = torch.randint(64, 192, (len(labels), 1, 32, 32), generator=generator).expand(-1, 3, -1, -1).to(torch.uint8)
    for image, label, cell in zip(images, labels.tolist(), cells.tolist(), strict=True):
        if label < 3:
            image = image.view(3, 4, 8, 4, 8)[:, cell // 4, :, cell % 4]
            image[:], image[label] = 0, 255
    return images


def test_what_alone_tells_the_label_is_hot():
    """A colour in one corner, in grey noise: a CNN that learned to tell colours anywhere looks at that corner."""
    torch.manual_seed(0)
    model, generator = scratch_cnn(depths=(1, 1, 1)).train(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        labels, cells = torch.randint(4, (64,), generator=generator), torch.randint(16, (64,), generator=generator)
        F.cross_entropy(model(coloured(labels, cells, generator) / 127.5 - 1).logits, labels).backward()
        optimiser.step()
        optimiser.zero_grad()
    predictor = Predictor(model, processor(32), name="trained here")
    labels, corners = torch.arange(3).repeat(4), torch.tensor([0, 3, 12, 15]).repeat_interleave(3)
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in coloured(labels, corners, generator)]
    assert (predictor.logits(images).argmax(axis=1) == labels.numpy()).all()
    for image, label, corner in zip(images, labels.tolist(), corners.tolist(), strict=True):
        cells = explain.heatmap(predictor, image, label).reshape(4, 8, 4, 8).mean(axis=(1, 3))
        assert cells.argmax() == corner, cells.round(2)
        assert cells.flat[corner] > 3 * np.delete(cells.flat, corner).mean()


def test_views_do_not_change_the_heat():
    torch.manual_seed(0)
    predictor = Predictor(scratch_cnn(depths=(1, 2, 3)), processor(32), name="views")
    heats = []
    for views in (1, 2, 6):
        predictor.model.config.views = views
        heats.append(np.stack([explain.heatmap(predictor, picture(), label) for label in range(4)]))
    assert np.array_equal(heats[0], heats[1]) and np.array_equal(heats[0], heats[2]) and heats[0].max() == 1
    assert predictor.model.config.views == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: ViTForImageClassification(ViTConfig(**SMALL, num_labels=10)),
        lambda: scratch_cnn(depths=(1, 2, 3), views=2),
    ],
    ids=["vit", "scratch cnn"],
)
def test_other_threads_notice_nothing(make):
    predictor = predictor_of(make)
    images = [picture(seed) for seed in range(4)]
    model = predictor.model
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    config, logits = model.config.to_dict(), predictor.logits(images)
    heats = [explain.heatmap(predictor, image, 1) for image in images]
    with ThreadPoolExecutor(6) as pool:
        found_heats = [pool.submit(explain.heatmap, predictor, image, 1) for image in images * 5]
        found_logits = [pool.submit(predictor.logits, images) for _ in range(20)]
    for i, (heat, rows) in enumerate(zip(found_heats, found_logits, strict=True)):
        np.testing.assert_allclose(heat.result(), heats[i % 4], atol=1e-5)
        np.testing.assert_allclose(rows.result(), logits, atol=1e-6)
    np.testing.assert_allclose(predictor.logits(images), logits, atol=1e-6)
    assert model.config.to_dict() == config and all(
        tensor.equal(state[name]) for name, tensor in model.state_dict().items()
    )
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert attributes == {name: dict(vars(module)) for name, module in model.named_modules()}  # hooks among them


def test_the_same_bytes_on_two_runs(tmp_path):
    folder = save_tiny_vit(tmp_path / "tiny")
    first, second = (explain.heatmap(load_predictor(folder), picture(), 2) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != explain.heatmap(load_predictor(folder), picture(), 3).tobytes()


def test_a_model_without_a_map_is_named_in_one_line():
    with pytest.raises(ModelError, match="made here looks: NoMap") as error:
        explain.heatmap(predictor_of(NoMap), picture())
    assert "\n" not in str(error.value)


def test_a_damaged_model_is_an_error(by_hand):
    with torch.no_grad():
        by_hand.model.head.weight[0] = float("nan")
    with pytest.raises(ModelError, match="by hand gave NaN"):
        explain.heatmap(by_hand, quadrants(RED, BLUE), 0)


def test_seen_undoes_the_normalisation():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for settings in ({}, {"image_mean": [0.49, 0.48, 0.45], "image_std": [0.25, 0.24, 0.26]}, {"do_normalize": False}):
        predictor = Predictor(ByHand(), processor(32, **settings), name="by hand")
        np.testing.assert_array_equal(explain.preprocessed_image(predictor, Image.fromarray(pixels)), pixels)


@pytest.mark.skipif("HUB_MIRROR" not in os.environ, reason="needs the backbones' processors: set HUB_MIRROR")
@pytest.mark.parametrize("name", BACKBONES)
def test_seen_is_the_processors_picture(name):
    predictor = load_predictor(Path(os.environ["HUB_MIRROR"]) / "models" / name)
    image = Image.open(ROOT / "examples" / "cat_1.jpg").convert("RGB")
    if "timm" in name:
        transforms = predictor.processor.val_transforms.transforms
        expected = image
        for transform in [transform for transform in transforms if type(transform).__name__ != "Normalize"]:
            expected = transform(expected)  # ends as a tensor in [0, 1]
        expected = (expected * 255).round()
    else:
        expected = predictor.processor([image], return_tensors="pt", do_normalize=False, do_rescale=False)[
            "pixel_values"
        ][0]
    np.testing.assert_array_equal(explain.preprocessed_image(predictor, image), expected.permute(1, 2, 0))


def test_overlay_by_hand():
    """inferno runs from (0, 0, 4) to (252, 255, 164)."""
    grey = np.full((1, 2, 3), 100, np.uint8)
    heat = np.array([[0, 1]], np.float32)
    over = explain.overlay(grey, heat)
    assert over.mode == "RGB" and over.size == (2, 1)
    assert [over.getpixel((x, 0)) for x in (0, 1)] == [(50, 50, 52), (176, 177, 132)]
    assert (np.asarray(explain.overlay(grey, heat, alpha=0)) == grey).all()
    assert explain.overlay(grey, heat, alpha=1).getpixel((1, 0)) == (252, 255, 164)


@pytest.mark.parametrize("name", ["models/cnn", *BACKBONES])
def test_real_weights_need_what_is_hot(name):
    """With the hottest 30% greyed, the top label loses more than with the same shape greyed half an image further."""
    folder = ROOT / name
    if name in BACKBONES:
        if "HUB_MIRROR" not in os.environ:
            pytest.skip("needs pre-trained weights: set HUB_MIRROR")
        folder = Path(os.environ["HUB_MIRROR"]) / "models" / name
    predictor, kept, moved = load_predictor(folder), [], []
    for example in ("cat_1.jpg", "dog_1.jpg", "horse_2.jpg", "airplane_1.jpg"):
        pixel_values = predictor.pixel_values([ROOT / "examples" / example])
        heat = torch.from_numpy(explain.heatmap(predictor, ROOT / "examples" / example)).to(pixel_values.device)
        hot = heat >= heat.quantile(0.7)
        elsewhere = hot.roll((hot.shape[0] // 2, hot.shape[1] // 2), (0, 1))
        with torch.no_grad():
            batch = torch.cat([pixel_values, pixel_values.masked_fill(hot, 0), pixel_values.masked_fill(elsewhere, 0)])
            probabilities = predictor.model(batch).logits.softmax(dim=1)
        whole, without_hot, without_other = probabilities[:, probabilities[0].argmax()].tolist()
        kept.append(without_hot / whole)
        moved.append(without_other / whole)
    assert np.mean(kept) < np.mean(moved) - 0.1, (kept, moved)
