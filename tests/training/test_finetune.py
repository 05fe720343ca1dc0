"""Fine-tuning on a handful of generated images: tiny randomly initialised models, and the real backbones where they
are.
"""

import copy
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import InterpolationMode
from torchvision.transforms.v2.functional import resize as torchvision_resize
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessor,
    EfficientNetImageProcessor,
    EvalPrediction,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileViTImageProcessor,
    PerceiverForImageClassificationLearned,
    PoolFormerImageProcessor,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
    pipeline,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

import finetune_vit
from classifier import average, errors, load_predictor, runs
from classifier.data.loaders import image_batches
from classifier.data.splits import load_splits
from classifier.errors import ModelError
from classifier.models import backbone
from classifier.models import processor as processors
from classifier.models.loading import load_processor
from classifier.training import distill, finetune_trainer, probe
from classifier.training.augment import add_noise, crop_boxes, crop_resize, mix, normalize
from classifier.training.callbacks import ProgressTracker, last_checkpoint
from classifier.training.finetune_data import InMemory, Streamed, check_workers, collate, explaining_workers
from classifier.training.finetune_trainer import FinetuneRecipe
from classifier.training.runtime import StopSignal
from tests.helpers.models import edit_config, tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import COLOURS, noise, write_images

BACKBONES = ("facebook/deit-tiny-patch16-224", "google/mobilenet_v2_1.0_224", "timm/tf_efficientnet_lite0.in1k")
SHORT = ("--num_train_epochs", "2", "--per_device_train_batch_size", "8", "--learning_rate", "0.003", "--bf16", "false")


def tiny_convnext() -> ConvNextForImageClassification:
    torch.manual_seed(0)
    return ConvNextForImageClassification(
        ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 2], image_size=32)
    )


def command(*words: str | Path) -> None:
    """What `python finetune_vit.py` does, in this process; few images train all of a model unless a test says so."""
    all_of_it = () if "--freeze" in words else ("--freeze", "none")
    before, sys.argv = sys.argv, ["finetune_vit.py", *map(str, words), *all_of_it]
    try:
        errors.run(finetune_vit.main)
    finally:
        sys.argv = before


def read(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("data") / "colours", *noise(48))
    write_images(folder, *noise(16, seed=1), split="validation")
    return write_images(folder, *noise(8, seed=2), split="test")


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    """A ViT of 30 thousand random weights for 1,000 labels, with dropout, so that a step draws random numbers."""
    folder = tmp_path_factory.mktemp("models") / "vit"
    tiny_vit(num_labels=1000, hidden_dropout_prob=0.1).save_pretrained(folder)
    size = {"height": 36, "width": 36}
    DeiTImageProcessor(size=size, crop_size={"height": 32, "width": 32}, do_center_crop=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def convnext(tmp_path_factory) -> Path:
    """A ConvNeXt of random weights."""
    folder = tmp_path_factory.mktemp("models") / "convnext"
    tiny_convnext().save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(pictures, vit, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("runs") / "vit"
    command("--model", vit, "--dataset", pictures, "--output_dir", output_dir, *SHORT)
    return output_dir


def assert_all_agree(folder: Path, dataset: Path) -> None:
    """What validation computed, the predictor and the pipeline say the same."""
    predictor = load_predictor(folder)
    splits = load_splits(str(dataset))
    images, labels = next(image_batches("validation", splits, 100))
    probabilities = predictor.probabilities(images)
    told = read(folder)["validation"]
    assert told["accuracy"] == (probabilities.argmax(axis=1) == np.array(labels)).mean()
    assert told["nll"] == pytest.approx(-np.log(probabilities[np.arange(len(labels)), labels]).mean(), abs=1e-4)
    for row, entries in zip(
        probabilities, pipeline("image-classification", model=str(folder))(images, top_k=len(COLOURS)), strict=True
    ):
        scores = {entry["label"]: entry["score"] for entry in entries}
        assert [scores[label] for label in predictor.labels] == pytest.approx(row, abs=1e-4)


@pytest.mark.parametrize("bicubic", [True, False])
@pytest.mark.parametrize("size", [47, 13])
def test_a_box_that_is_the_whole_image_is_resized_as_by_torchvision(bicubic, size):
    images, _ = noise(5)
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    expected = torchvision_resize(images, [size, size], interpolation=mode, antialias=True).float()
    mirrored = torch.tensor([True, False, True, False, False])
    expected = torch.where(mirrored[:, None, None, None], expected.flip(-1), expected)
    edges = torch.zeros(5), torch.zeros(5), torch.full((5,), 20.0), torch.full((5,), 20.0)
    difference = (crop_resize(images, edges, mirrored, size, bicubic) - expected).abs()
    assert difference.max() <= 2 and difference.mean() < 0.05  # levels of 255: its weights have few bits


def test_a_box_is_cut_out_by_hand():
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4) * 10
    boxes = tuple(torch.tensor([float(edge)]) for edge in (1, 2, 2, 2))  # rows 1 and 2, columns 2 and 3
    cut = crop_resize(images, boxes, torch.tensor([True]), 2, bicubic=False)
    assert cut.flatten().tolist() == [70, 60, 110, 100]


def test_boxes_lie_in_the_image_and_cover_the_share_that_was_asked_for():
    top, left, height, width = crop_boxes(2000, 30, 40, 0.5, torch.Generator().manual_seed(0))
    assert min(top.min(), left.min()) >= 0 and (top + height).max() <= 30.001 and (left + width).max() <= 40.001
    area = height * width / 1200
    assert 0.499 < area.min() < 0.51 and 0.99 < area.max() <= 1.001
    ratio = width / height
    assert ratio[area < 0.6].min() > 0.749 and ratio.max() < 4 / 3 + 0.001 and ratio[area > 0.99].min() > 1.3
    whole = crop_boxes(3, 30, 40, 1.0, torch.Generator().manual_seed(0))
    assert [edge.tolist() for edge in whole] == [pytest.approx([value] * 3, abs=1e-3) for value in (0, 0, 30, 40)]


def test_noise_is_added_to_half_of_the_images():
    """Of grey images: those that change have deviations that are even in [0, 0.1] of the range, 0.05 in the mean."""
    grey = torch.full((2000, 3, 16, 16), 128, dtype=torch.uint8)
    noisy = add_noise(grey, 0.1, torch.Generator().manual_seed(0))
    deviations = (noisy.float() - 128).std(dim=(1, 2, 3)) / 255
    changed = deviations > 0
    assert noisy.dtype == torch.uint8 and changed.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert deviations.max().item() < 0.11 and deviations[changed].mean().item() == pytest.approx(0.05, abs=0.003)
    assert torch.equal(noisy, add_noise(grey, 0.1, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("alphas", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_mixing_weighs_targets_as_pixels(alphas):
    images = torch.stack([torch.zeros(3, 10, 10), torch.ones(3, 10, 10)])
    for seed in range(20):
        mixed, targets = mix(images, torch.eye(2), *alphas, torch.Generator().manual_seed(seed))
        assert mixed.mean(dim=(1, 2, 3)).numpy() == pytest.approx(targets[:, 1].numpy(), abs=1e-5)


def test_mixing_depends_on_its_generator_alone():
    images, targets = torch.rand(4, 3, 10, 10), torch.eye(4)
    state = torch.get_rng_state()
    first = mix(images, targets, 1.0, 1.0, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)  # dropout, which draws from there, is not disturbed
    torch.rand(1)
    second = mix(images, targets, 1.0, 1.0, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = mix(images, targets, 1.0, 1.0, torch.Generator().manual_seed(4))
    assert not torch.equal(first[1], other[1])


PROCESSORS = [
    DeiTImageProcessor(),
    ViTImageProcessor(),
    ConvNextImageProcessor(size={"shortest_edge": 224}),
    PoolFormerImageProcessor(),
    TimmWrapperImageProcessor({"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic"}, "resnet18"),
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_a_processor_at_another_size_does_the_same_to_a_batch_and_to_an_image(processor, crop_pct):
    if isinstance(processor, TimmWrapperImageProcessor):
        model = tiny_convnext()
        model.config.pretrained_cfg, model.config.architecture = {"interpolation": "bicubic"}, "resnet18"
    else:
        model = None
    changed = processors.resized(processor, model, 48, crop_pct)
    assert processors.size_of(changed) == 48 and processors.crop_pct_of(changed) == pytest.approx(crop_pct, abs=0.01)
    images, _ = noise(4)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    difference = (
        processors.process_batch(changed, images) - changed(images=pictures, return_tensors="pt")["pixel_values"]
    )
    is_timm = isinstance(processor, TimmWrapperImageProcessor)  # which resizes with Pillow
    assert difference.shape == (4, 3, 48, 48)
    assert difference.abs().max() <= (2.1 / 255 / min(processors.mean_std(changed)[1]) if is_timm else 1e-6)


def test_attention_by_products_is_the_fused_one():
    fused = tiny_vit()
    pixels = torch.randn(2, 3, 32, 32)
    fused(pixel_values=pixels).logits.square().sum().backward()
    ours = copy.deepcopy(fused)
    ours.zero_grad()
    backbone.use_matmul_attention(ours)
    logits = ours(pixel_values=pixels).logits
    torch.testing.assert_close(logits, fused(pixel_values=pixels).logits)
    logits.square().sum().backward()
    for own, other in zip(ours.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    assert "attn" not in ours.config.to_json_string()  # a saved model attends as its reader likes


def test_attention_under_autocast_stays_in_bfloat16():
    query, key, value = torch.randn(3, 1, 2, 5, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out, weights = backbone.matmul_attention(torch.nn.Identity().eval(), query, key, value, None, dropout=0.5)
    assert out.dtype == weights.dtype == torch.bfloat16
    exact = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
    torch.testing.assert_close(out.float(), exact.transpose(1, 2), atol=0.02, rtol=0.02)


def test_attention_under_autocast_takes_a_mask_in_float32():
    """Swin's mask of shifted windows is one, and so are BEiT's relative position biases."""
    query, key, value = torch.randn(3, 1, 2, 5, 8, dtype=torch.bfloat16)
    mask = torch.randn(1, 2, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = backbone.matmul_attention(torch.nn.Identity().eval(), query, key, value, mask)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16 and mask.grad.abs().max() > 0
    exact = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask)
    torch.testing.assert_close(out.float(), exact.transpose(1, 2), atol=0.02, rtol=0.02)


def test_depths_by_hand():
    vit, convnext = backbone.parameter_depths(tiny_vit()), backbone.parameter_depths(tiny_convnext())
    assert vit["vit.embeddings.position_embeddings"] == 0 and vit["vit.layers.0.mlp.fc1.weight"] == 1
    assert vit["vit.layers.2.mlp.fc1.weight"] == 3 and vit["vit.layernorm.weight"] == vit["classifier.bias"] == 4
    assert convnext["convnext.embeddings.patch_embeddings.weight"] == 0
    assert convnext["convnext.encoder.stages.0.layers.0.dwconv.weight"] == 1
    assert convnext["convnext.encoder.stages.1.downsampling_layer.1.weight"] == 2
    assert convnext["convnext.encoder.stages.1.layers.1.dwconv.weight"] == 4 and convnext["classifier.weight"] == 5


def test_position_embeddings_are_resampled_not_initialised():
    model, pixels = tiny_vit().eval(), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True).logits
        resized = backbone.resize(model, 48).eval()
        assert torch.equal(resized(pixels).logits, expected)
        assert torch.equal(backbone.forward(model, pixels), expected)  # what training at another size does
    back = backbone.resize(resized, 32).vit.embeddings.position_embeddings
    assert torch.corrcoef(torch.stack([back.flatten(), model.vit.embeddings.position_embeddings.flatten()]))[0, 1] > 0.9


def test_a_timm_transformer_is_resized_too():
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={"depth": 1, "img_size": 64},
        num_labels=3,
        pretrained_cfg={"input_size": [3, 64, 64], "fixed_input_size": True},
    )
    resized = backbone.resize(TimmWrapperForImageClassification(config), 96)
    assert resized(torch.zeros(1, 3, 96, 96)).logits.shape == (1, 3)


def test_a_resolution_that_the_architecture_refuses_is_an_error():
    settings = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    beit = BeitConfig(**settings, image_size=64, use_relative_position_bias=True)
    with pytest.raises(ModelError, match=r"relative_position_bias_table.*--image_size 64"):
        backbone.resize(BeitForImageClassification(beit), 32)
    with pytest.raises(ModelError, match="--image_size 32"):
        backbone.resize(tiny_vit(), 36)


def test_a_head_for_other_labels_is_zero_and_told(vit, tuned):
    found = backbone.load(str(vit), list(COLOURS))
    assert found.initialized == ["classifier.bias", "classifier.weight"] and not found.model.classifier.weight.any()
    assert backbone.load(str(tuned), list(COLOURS)).initialized == []
    other = backbone.load(str(tuned), ["a", "b", "c", "d"])  # as many, but others
    assert other.initialized and not other.model.classifier.weight.any()


def test_drop_path_is_set_where_the_architecture_has_it(convnext, vit):
    assert backbone.load(str(convnext), list(COLOURS), drop_path=0.2).model.config.drop_path_rate == 0.2
    with pytest.raises(ModelError, match="--drop_path"):
        backbone.load(str(vit), list(COLOURS), drop_path=0.2)


def tuner(
    output_dir: Path, model, dataset: InMemory, layer_decay: float = 0.5, **changes
) -> finetune_trainer.FinetuneTrainer:
    args = finetune_vit.Training(
        output_dir=str(output_dir),
        bf16=False,
        disable_tqdm=True,
        learning_rate=3e-3,
        weight_decay=0.0,
        label_smoothing_factor=0.0,
        dataloader_num_workers=0,
        **{"per_device_train_batch_size": len(dataset)} | changes,
    )
    return finetune_trainer.FinetuneTrainer(
        model,
        args,
        ViTImageProcessor(size={"height": 32, "width": 32}),
        (dataset, dataset),
        ProgressTracker(output_dir, {}, StopSignal()),
        FinetuneRecipe(sizes=((1.0, 32),), layer_decay=layer_decay),
    )


def test_overfits_one_batch(tmp_path):
    images, _ = noise(16, size=32)
    dataset = InMemory(images, torch.arange(16) // 4)  # labels that the colours do not tell: only memory can
    never = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    trainer = tuner(tmp_path, tiny_vit(num_labels=4), dataset, 1.0, num_train_epochs=100, logging_steps=1, **never)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] > 1 and losses[-1] < 0.1
    assert trainer.evaluate()["eval_accuracy"] == 1


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tuned, tmp_path):
    predictor, labels = load_predictor(tuned), sorted(COLOURS, reverse=True)  # in another order than the teacher's
    mean, std = [0.3, 0.4, 0.5], [0.2, 0.25, 0.3]
    teacher = distill.Teacher(tuned, labels, mean, std, torch.device("cpu"))
    images, _ = noise(4, size=32)
    own = normalize(images.float(), *processors.mean_std(predictor.processor))
    expected = predictor.model(pixel_values=own).logits[:, [predictor.labels.index(label) for label in labels]]
    targets = teacher.probabilities(normalize(images.float(), mean, std))
    torch.testing.assert_close(targets, (expected / 2).softmax(dim=1), rtol=1e-4, atol=1e-5)
    logits = expected.detach().clone().requires_grad_()
    distill.losses(logits, targets).sum().backward()
    assert logits.grad.abs().max() < 1e-4
    halves = torch.tensor(
        [[2.0, 0.0]]
    ).requires_grad_()  # by hand: 4 × (log(1 + e) - 1 + 0.5), its gradient 2 × (σ(1) - 0.5)
    loss = distill.losses(halves, torch.tensor([[0.5, 0.5]])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(3.2530, abs=1e-3) and halves.grad[0, 0].item() == pytest.approx(
        0.4621, abs=1e-3
    )


def test_a_teacher_is_copied_and_one_of_other_labels_refused(pictures, vit, convnext, tuned, tmp_path, capsys):
    """The student's labels are shuffled, so that what it gets right it has from the teacher."""
    images, labels = noise(48)
    shuffled = write_images(tmp_path / "shuffled", images, labels.roll(1))
    write_images(shuffled, *noise(16, seed=1), split="validation")
    words = ["--model", convnext, "--dataset", shuffled, *SHORT, "--num_train_epochs", "20", "--learning_rate", "0.01"]
    command(*words, "--teacher", tuned, "--output_dir", tmp_path / "student")
    run = read(tmp_path / "student")
    assert read(tuned)["validation"]["accuracy"] >= 0.9 and run["validation"]["accuracy"] >= 0.8
    assert run["recipe"]["teacher"] == str(tuned) and run["recipe"]["label_smoothing"] == 0
    with pytest.raises(SystemExit) as stopped:
        command("--model", convnext, "--dataset", pictures, "--teacher", vit, "--output_dir", tmp_path / "other")
    assert stopped.value.code == 2 and "fine-tune it on this dataset first" in capsys.readouterr().err


def test_a_block_learns_slower_than_the_next(tmp_path):
    trainer = tuner(tmp_path, tiny_vit(num_labels=4), InMemory(*noise(4, size=32)))
    groups = trainer.create_optimizer().param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    model = trainer.model
    assert [
        rates[id(p)]
        for p in (model.classifier.weight, model.vit.layers[2].mlp.fc1.weight, model.vit.embeddings.cls_token)
    ] == pytest.approx([3e-3, 3e-3 / 2, 3e-3 / 16])
    assert len(rates) == len(list(model.parameters())) and not any(decays.values())


def test_a_run_leaves_a_folder_that_everyone_loads_alike(tuned, pictures):
    assert {path.name for path in tuned.iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "run.json", "metrics.jsonl", "README.md"),
        *("samples.png", "classes.png", "curves.png"),
    }
    run, lines = read(tuned), [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert run["settings"]["learning_rate"] == 0.003 and run["parent"] is None
    assert (
        [line["epoch"] for line in lines] == [1, 2] and run["best_epoch"] is None and run["recipe"]["batch_size"] == 8
    )
    assert lines[-1]["size"] == 32 and run["images_seen"] == 2 * 48
    sizes = run["recipe"]["sizes"]
    flops = {size: backbone.forward_flops(tiny_vit(num_labels=4), size) for _, size in sizes}
    assert run["train_flops"] == pytest.approx(sum(3 * 48 * epochs * flops[size] for epochs, size in sizes), rel=0.15)
    assert load_file(tuned / "model.safetensors")["classifier.weight"].dtype == torch.float16
    assert_all_agree(tuned, pictures)


def test_a_resumed_run_equals_one_that_was_not_stopped(tuned, vit, pictures, tmp_path, monkeypatch, capsys):
    """Stopped in the middle of an epoch, by a signal; the model has dropout."""
    words = ["--model", vit, "--dataset", pictures, "--output_dir", tmp_path / "run", *SHORT]
    on_step_end = ProgressTracker.on_step_end

    def send_signal(self, args, state, control, **kwargs):
        if state.global_step == 8:  # of 6 an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(ProgressTracker, "on_step_end", send_signal)
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    monkeypatch.undo()
    assert stopped.value.code == 130
    assert "after step 8 of 12" in (said := capsys.readouterr().err) and "--resume_from_checkpoint last" in said
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-8"
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 1  # a broken epoch has no line

    with pytest.raises(SystemExit):  # nor is a run overwritten
        command(*words)
    assert "holds a run" in capsys.readouterr().err
    for flag, value, told in (
        ("--crop_scale", "0.3", "crop_scale 0.6 (now 0.3)"),
        ("--image_size", "48", "image_size 32 (now 48)"),
        ("--photographs", pictures / "validation", "photographs None (now 15)"),
    ):
        with pytest.raises(SystemExit):
            command(*words, flag, value, "--resume_from_checkpoint", "last")
        assert told in capsys.readouterr().err

    command(*words, "--resume_from_checkpoint", "last")
    before, after = (load_file(folder / "model.safetensors") for folder in (tuned, tmp_path / "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    timings = ("images_per_second", "train_seconds")
    lines = [
        [{k: v for k, v in json.loads(line).items() if k not in timings} for line in (folder / "metrics.jsonl").open()]
        for folder in (tuned, tmp_path / "run")
    ]
    assert lines[0] == lines[1] and read(tuned)["train_flops"] == read(tmp_path / "run")["train_flops"]


def test_a_full_disk_leaves_the_last_good_checkpoint(vit, pictures, tmp_path, monkeypatch, capsys):
    save = torch.save

    def full(value, path, *args, **kwargs):
        if "checkpoint-12" in str(path):
            raise OSError(28, "No space left on device")
        save(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    words = ["--model", vit, "--dataset", pictures, "--output_dir", tmp_path, *SHORT]
    with pytest.raises(SystemExit) as refused:
        command(*words)
    assert refused.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "finetune_vit.py" in line]
    assert "No space left" in line and "last, from step 6" in line
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    monkeypatch.undo()
    command(*words, "--resume_from_checkpoint", "last")
    assert read(tmp_path)["images_seen"] == 96


def test_a_batch_that_does_not_fit_is_made_smaller(tmp_path, monkeypatch):
    compute_loss = finetune_trainer.FinetuneTrainer.compute_loss

    def limited(self, model, inputs, **kwargs):
        if len(inputs["labels"]) > 6:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return compute_loss(self, model, inputs, **kwargs)

    monkeypatch.setattr(finetune_trainer.FinetuneTrainer, "compute_loss", limited)
    trainer = tuner(tmp_path, tiny_vit(num_labels=4), InMemory(*noise(8, size=32)), num_train_epochs=1)
    trainer.train()
    assert trainer.state.train_batch_size == 6 and trainer.progress.images_seen == 8


def test_memory_that_ends_later_does_not_start_the_run_anew(tmp_path, monkeypatch):
    compute_loss = finetune_trainer.FinetuneTrainer.compute_loss

    def limited(self, model, inputs, **kwargs):
        if self.state.global_step == 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return compute_loss(self, model, inputs, **kwargs)

    monkeypatch.setattr(finetune_trainer.FinetuneTrainer, "compute_loss", limited)
    trainer = tuner(tmp_path, tiny_vit(num_labels=4), InMemory(*noise(8, size=32)), num_train_epochs=4)
    with pytest.raises(ModelError, match=r"after step 2 .* --gradient_accumulation_steps 2"):
        trainer.train()
    assert trainer.progress.images_seen == 16


def test_the_best_epoch_is_that_of_the_metric_asked_for(tmp_path):
    tracker = ProgressTracker(tmp_path, {}, StopSignal(), metric="f1")
    names = ("epoch", "validation_accuracy", "validation_f1", "validation_loss")
    lines = [(1, 0.9, 0.2, 0.5), (2, 0.8, 0.6, 0.4), (3, 0.7, 0.6, 0.3), (4, 0.6, 0.1, 0.9)]
    tracker.history = [dict(zip(names, line, strict=True)) for line in lines]
    assert (tracker.best_epoch, tracker.evaluations_since_best) == (2, 2)
    tracker.metric = "accuracy"
    assert (tracker.best_epoch, tracker.evaluations_since_best) == (1, 3)
    tracker.metric = "nll"
    assert (tracker.best_epoch, tracker.evaluations_since_best) == (3, 1)


def test_validation_is_measured_by_hand():
    """Of two classes with three and one images: precision 1 and 1/2, recall 2/3 and 1, so F1 4/5 and 2/3."""
    logits = np.array([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0], [5.0, 0.0]])
    labels = np.array([0, 0, 0, 1, finetune_trainer.IGNORED])  # the last one is unreadable
    measured = finetune_trainer.validation_metrics(EvalPrediction(logits, labels))
    assert measured["accuracy"] == 0.75 and measured["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert measured["nll"] == pytest.approx((4 * np.log1p(np.exp(-9)) + 9) / 4)


@pytest.mark.parametrize("metric", ["f1", "loss"])
def test_the_weights_kept_are_those_of_the_best_epoch_by_the_metric(metric, vit, pictures, tmp_path):
    words = ["--metric_for_best_model", metric, "--load_best_model_at_end", "true"]
    command("--model", vit, "--dataset", pictures, "--output_dir", tmp_path, *SHORT, *words)
    history = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line["validation_f1"] if metric == "f1" else -line["validation_loss"] for line in history]
    assert read(tmp_path)["best_epoch"] == 1 + scores.index(max(scores))


def test_drop_last_leaves_validation_whole(tmp_path):
    model, images = tiny_vit(num_labels=4), InMemory(*noise(8, size=32))
    trainer = tuner(tmp_path, model, images, num_train_epochs=1, dataloader_drop_last=True)
    assert [len(batch["labels"]) for batch in trainer.get_eval_dataloader()] == [8]  # of up to 128
    assert trainer.args.dataloader_drop_last


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("size", [4, 1])  # 4 + 1 images, or 1 at a time
def test_a_batch_of_one_passes_batch_norm(size, accumulated, tmp_path):
    """At 32 pixels the last feature map of MobileNetV2 has one pixel, which has no variance within one image."""
    torch.manual_seed(0)
    model = MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.1, image_size=32, num_labels=4))
    settings = {"gradient_accumulation_steps": accumulated, "num_train_epochs": 1, "per_device_train_batch_size": size}
    trainer = tuner(tmp_path, model, InMemory(*noise(5, size=32)), **settings)
    trainer.train()
    assert trainer.progress.images_seen == 5
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = tiny_vit(num_labels=4)
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    trainer = tuner(tmp_path, model, InMemory(*noise(8, size=32)), num_train_epochs=2, logging_steps=1)
    with pytest.raises(ModelError, match=r"the loss is nan .* step 1"):
        trainer.train()


def test_a_stage_goes_on_from_the_last_ones_head_at_another_resolution(tuned, pictures, tmp_path, capsys):
    words = [
        "--model",
        tuned,
        "--dataset",
        pictures,
        "--image_size",
        "48",
        "--num_train_epochs",
        "1",
        "--bf16",
        "false",
    ]
    command(
        *words, "--output_dir", tmp_path, "--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "8"
    )
    assert "its head fits the labels" in capsys.readouterr().out
    run = read(tmp_path)
    assert run["parent"]["command"] == read(tuned)["command"] and len(run["parent"]["model_sha256"]) == 64
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == 48
    assert_all_agree(tmp_path, pictures)


def average_of(monkeypatch, model: Path, stage: Path, output_dir: Path) -> None:
    """What `python -m classifier.average` does."""
    monkeypatch.setattr(sys, "argv", ["average", str(model), "--stages", str(stage), "--output_dir", str(output_dir)])
    average.main()


def stages(tuned: Path, folder: Path, early: float, late: float) -> tuple[Path, Path]:
    """Two stages: the tuned model with so much of a random matrix added to its head, once and again."""
    shift = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    for name, scale in (("early", early), ("late", late)):
        shutil.copytree(tuned, folder / name)
        weights = load_file(tuned / "model.safetensors")
        weights["classifier.weight"] = (weights["classifier.weight"].float() + scale * shift).half()
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
    parent = read(tuned) | {"model_sha256": runs.sha256(folder / "early/model.safetensors")}
    (folder / "late/run.json").write_text(json.dumps(read(tuned) | {"parent": parent}))
    return folder / "early", folder / "late"


def test_stages_that_miss_on_either_side_are_averaged(tuned, pictures, tmp_path, monkeypatch):
    early, late = stages(tuned, tmp_path, 3.0, -3.0)
    average_of(monkeypatch, late, early, tmp_path / "mean")
    found = read(tmp_path / "mean")
    assert [row["taken"] for row in found["averaged"]["models"]] == [True, True]
    assert found["validation"]["nll"] < min(row["nll"] for row in found["averaged"]["models"])
    assert found["validation"]["accuracy"] == read(tuned)["validation"]["accuracy"]
    mean, middle = (load_predictor(each).model.classifier.weight for each in (tmp_path / "mean", tuned))
    torch.testing.assert_close(mean * found["validation"]["temperature"], middle, atol=0.01, rtol=0)
    assert found["parent"]["model_sha256"] == runs.sha256(early / "model.safetensors")
    assert "replaced by the mean of late and early:" in (tmp_path / "mean/README.md").read_text()
    assert_all_agree(tmp_path / "mean", pictures)


def test_a_share_of_the_pretrained_weights_is_mixed_in(tuned, pictures, tmp_path, monkeypatch, capsys):
    """The model that the run started from has 0.5 more in each weight, of which 20% are added, but not to the head."""
    for name in ("pretrained", "tuned"):
        shutil.copytree(tuned, tmp_path / name)
    weights = {name: tensor.float() + 0.5 for name, tensor in load_file(tuned / "model.safetensors").items()}
    save_file(weights, tmp_path / "pretrained/model.safetensors", metadata={"format": "pt"})
    run = read(tuned)
    run["settings"]["model"] = str(tmp_path / "pretrained")
    (tmp_path / "tuned/run.json").write_text(json.dumps(run))

    flags = ["--pretrained_share", "0.2", "--output_dir", str(tmp_path / "mean")]
    monkeypatch.setattr(sys, "argv", ["average", str(tmp_path / "tuned"), *flags])
    average.main()
    assert "with 20% of pretrained: " in capsys.readouterr().out
    before, after = (load_file(folder / "model.safetensors") for folder in (tuned, tmp_path / "mean"))
    temperature = read(tmp_path / "mean")["validation"]["temperature"]
    for name, tensor in before.items():
        expected = tensor.float() / temperature if name.startswith("classifier.") else tensor.float() + 0.1
        torch.testing.assert_close(after[name].float(), expected, atol=2e-3, rtol=2e-3)
    averaged = read(tmp_path / "mean")["averaged"]
    assert averaged["pretrained"] == "pretrained" and averaged["pretrained_share"] == 0.2
    made_of = "80% of the weights of tuned and 20% of the pre-trained ones of pretrained"
    assert f"replaced by the sum of {made_of}:" in (tmp_path / "mean/README.md").read_text()
    assert_all_agree(tmp_path / "mean", pictures)

    flags[-1] = str(tmp_path / "again")
    monkeypatch.setattr(sys, "argv", ["average", str(tmp_path / "mean"), *flags])
    average.main()
    assert read(tmp_path / "again")["averaged"]["before"] == averaged
    steps = [
        line.strip() for line in (tmp_path / "again/README.md").read_text().splitlines() if "classifier.av" in line
    ]
    assert [step.split()[3] for step in steps] == ["tuned", "mean"]


@pytest.mark.parametrize(
    ("words", "message"), [(["--pretrained_share", "1"], "no share: pass one in"), ([], "nothing to average: name")]
)
def test_a_mean_of_nothing_is_refused(words, message, tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["average", str(tuned), *words, "--output_dir", str(tmp_path / "mean")])
    with pytest.raises(ModelError, match=message):
        average.main()


def test_a_mean_that_is_no_better_is_not_written(tuned, tmp_path, monkeypatch):
    early, late = stages(tuned, tmp_path, 3.0, 0.0)
    with pytest.raises(ModelError, match="holds a finished run"):
        average_of(monkeypatch, late, early, tuned)
    with pytest.raises(ModelError, match=r"no mean is better than .*late"):
        average_of(monkeypatch, late, early, tmp_path / "mean")
    with pytest.raises(ModelError, match="is no stage that"):
        average_of(monkeypatch, early, late, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_convnext_of_random_weights(convnext, pictures, tmp_path):
    flags = ["--num_train_epochs", "1", "--per_device_train_batch_size", "8", "--mixup", "0.2", "--cutmix", "1"]
    command("--model", convnext, "--dataset", pictures, "--output_dir", tmp_path, *flags, "--drop_path", "0.1")
    assert read(tmp_path)["recipe"]["layer_decay"] == 1.0 and read(tmp_path)["recipe"]["crop_pct"] == 1.0
    assert_all_agree(tmp_path, pictures)


def test_settings_of_a_mobilenet_that_transformers_took_over_the_wrong_way_round_are_set_right(tmp_path):
    """TensorFlow's momentum is what a batch norm keeps of the old mean, and its 0.8 what dropout keeps."""
    model = MobileNetV2ForImageClassification(MobileNetV2Config(image_size=32, depth_multiplier=0.35))
    assert {module.momentum for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {0.997}
    assert model.dropout.p == 0.8
    model.save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    found = backbone.load(str(tmp_path / "model"), list(COLOURS)).model
    for each in (found, backbone.resize(found, 64)):
        assert {module.momentum for module in each.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {0.1}
    assert found.dropout.p == found.config.classifier_dropout_prob == 0.2
    found.save_pretrained(tmp_path / "model")  # a further stage takes them as they are
    assert backbone.load(str(tmp_path / "model"), list(COLOURS)).model.dropout.p == 0.2


def test_large_photographs_are_streamed(vit, tmp_path, capsys):
    folder = tmp_path / "photographs"
    images, labels = noise(20, size=150)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / list(COLOURS)[label] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((150 + 10 * index, 200)).save(path)
    (folder / "red/broken.jpg").write_bytes(b"no image")
    for path in (folder / "green").iterdir():  # broken behind the head; validation has one, alone in its batch
        path.write_bytes(path.read_bytes()[:700])
    for extra in range(8):
        shutil.copy(folder / "red/2.jpg", folder / f"red/copy{extra}.jpg")
    words = [
        "--model",
        vit,
        "--dataset",
        folder,
        "--output_dir",
        tmp_path / "run",
        "--max_steps",
        "2",
        "--bf16",
        "false",
    ]
    words += ["--validation_fraction", "0.2", "--class_weights", "balanced", "--dataloader_num_workers", "1"]
    words += ["--per_device_eval_batch_size", "1"]
    command(*words, "--skip_unreadable")
    run = read(tmp_path / "run")
    assert run["recipe"]["crop_pct"] == pytest.approx(32 / 36) and run["recipe"]["image_size"] == 32
    assert "smallest 3 (blue), largest 9 (red); median 195×200; 1 unreadable" in capsys.readouterr().out


def photographs(folder: Path, n: int = 20) -> Path:
    """Pictures that differ in size, so that workers decode them as they are needed."""
    for index, (image, label) in enumerate(zip(*noise(n, size=40), strict=True)):
        path = folder / list(COLOURS)[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((40 + index, 40)).save(path)
    return folder


def test_a_batch_needs_no_shared_memory():
    """What a worker sends holds the pixels themselves, not the name of a file in /dev/shm."""
    batch = collate([(torch.full((3, 8, 8), 7.0), 1), ("bad.png (row 3 of train)", ValueError("no image"))])
    sent = bytes(ForkingPickler.dumps(batch))
    assert len(sent) > batch["pixels"].nbytes
    got = pickle.loads(sent)
    assert torch.equal(got["pixels"], batch["pixels"]) and torch.equal(got["labels"], batch["labels"])
    assert [where for where, _ in got["failures"]] == ["bad.png (row 3 of train)"]


class Deadly(Streamed):
    """A split whose images end the process that decodes them."""

    def process(self, image):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_ends_the_run(tuned, tmp_path):
    predictor, splits = load_predictor(tuned), load_splits(str(photographs(tmp_path / "data")))
    dataset = Deadly("train", splits, predictor.processor, None, 32, 0)
    with pytest.raises(ModelError, match=r"/dev/shm.* --dataloader_num_workers"), explaining_workers():
        probe.extract(predictor.model, predictor.processor, dataset, folder=tmp_path, num_workers=2)


def test_workers_that_cannot_start_are_told_before_training():
    """A lock is a file in /dev/shm; that no file may be written has the same effect as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        check_workers(0)
        with pytest.raises(ModelError, match=r"/dev/shm.* --dataloader_num_workers 0"):
            check_workers(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("freeze", ["none", "backbone"])
def test_without_workers_images_are_decoded_in_the_process_itself(freeze, vit, tmp_path, monkeypatch):
    folder = photographs(tmp_path / "data")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    decoded_by = tmp_path / "processes"
    process = Streamed.process

    def noting(self, image):
        with decoded_by.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return process(self, image)

    monkeypatch.setattr(Streamed, "process", noting)
    words = ["--dataset", folder, "--freeze", freeze, "--dataloader_num_workers", "0", "--num_train_epochs", "1"]
    command("--model", vit, *words, "--output_dir", tmp_path / "run", "--bf16", "false")
    assert set(decoded_by.read_text().split()) == {str(os.getpid())}


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["none", "backbone"])
def test_little_shared_memory_is_enough(freeze, vit, tmp_path):
    """In a mount namespace of its own, with a /dev/shm that is smaller than a batch."""
    mount = "mount -t tmpfs -o size=500k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    folder = photographs(tmp_path / "data", 300)
    words = ["--model", vit, "--dataset", folder, "--output_dir", tmp_path / "run", "--freeze", freeze]
    words += ["--num_train_epochs", "1", "--per_device_train_batch_size", "200"]
    script = [sys.executable, ROOT / "finetune_vit.py", *words]
    subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *map(str, script)],
        check=True,
        timeout=300,
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(tmp_path / "home")},
    )


def test_cached_features_equal_uncached_ones(tuned, tmp_path):
    predictor = load_predictor(tuned)
    images, labels = noise(10)
    caught = []
    backbone.head(predictor.model).register_forward_pre_hook(lambda module, args: caught.append(args[0].numpy().copy()))
    predictor.logits([Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images])

    def extract(images=images, model=predictor.model):
        return probe.extract(model, predictor.processor, InMemory(images, labels), folder=tmp_path, batch_size=4)

    fresh, cached = extract(), extract()
    assert not fresh.was_cached and cached.was_cached and isinstance(cached.inputs, np.memmap)
    assert np.array_equal(fresh.inputs, cached.inputs) and np.array_equal(cached.labels, labels)
    assert cached.inputs == pytest.approx(caught[0], abs=1e-5)
    assert not extract(images=images.flip(0)).was_cached
    with torch.no_grad():
        predictor.model.classifier.weight.zero_()
    assert extract().was_cached  # the head doesn't matter
    with torch.no_grad():
        predictor.model.vit.layernorm.bias += 1
    assert not extract().was_cached


def test_a_class_weight_is_an_images():
    """By hand: whatever an image's weight, its loss is lowest where the probabilities are the smoothed target.

    Weights within the sum over classes would draw every image to the class that has the highest.
    """
    target = torch.tensor([0.95, 0.05])  # 0.1 of it spread over two classes
    weights = torch.tensor([0.5, 50.0])
    heads = torch.stack([torch.zeros(2), target.log()])[None]  # (1, D + 1, 2): the bias alone
    gradient, _ = probe.head_gradient(heads, torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), weights, 0.1)
    assert gradient.abs().max() < 1e-6
    logits = (2 * target.log())[None].requires_grad_()  # of temperature 2
    finetune_trainer.weigh(distill.losses(logits, target[None]), target[None], weights, 1).sum().backward()
    assert logits.grad.abs().max() < 1e-5
    of_photographs = finetune_trainer.weigh(torch.ones(3), torch.eye(2)[[1, 1, 1]], weights, 2)
    assert of_photographs.tolist() == [50, 50, 1]  # the third one's class counts for nothing


def test_heads_of_a_grid_learn_each_by_itself():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=90)
    inputs = (5 + 10 * np.eye(3)[labels] + rng.normal(0, 1, (90, 3))).astype(np.float32)
    heads = torch.tensor(rng.normal(size=(4, 4, 3)), dtype=torch.float32)
    gradient, sums = probe.head_gradient(heads, torch.from_numpy(inputs), torch.from_numpy(labels), None, 0.1)
    one, _ = probe.head_gradient(heads[2:3], torch.from_numpy(inputs), torch.from_numpy(labels), None, 0.1)
    assert torch.allclose(gradient[2], one[0], atol=1e-6) and sums.shape == (4, 2)
    split = probe.Features(inputs, labels, False)
    best = probe.fit_heads(split, split, probe.HeadSettings(num_labels=3, epochs=30, batch_size=30))
    logits = inputs @ best.weight.numpy().T + best.bias.numpy()  # of features as they are, not standardised
    assert (logits.argmax(axis=1) == labels).mean() == best.history[best.best_epoch - 1]["validation_accuracy"] > 0.97


def test_freeze_backbone_trains_the_head_alone(vit, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    flags = ["--freeze", "backbone", "--num_train_epochs", "2", "--bf16", "false"]
    command("--model", vit, "--dataset", pictures, "--output_dir", tmp_path / "run", *flags)
    before, after = backbone.load(str(vit), list(COLOURS)).model, load_predictor(tmp_path / "run").model
    assert torch.equal(before.vit.layernorm.weight.half(), after.vit.layernorm.weight.half())
    run = read(tmp_path / "run")
    assert run["validation"]["accuracy"] > 0.9 and run["recipe"]["learning_rate"] in probe.LEARNING_RATES
    assert len(list((tmp_path / "home/features").glob("*.labels.npy"))) == 2
    assert_all_agree(tmp_path / "run", pictures)


def test_a_head_alone_is_reported_to_trackers(vit, pictures, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    flags = ["--freeze", "backbone", "--num_train_epochs", "1", "--report_to", "tensorboard"]
    command("--model", vit, "--dataset", pictures, "--output_dir", tmp_path / "run", *flags)
    [file] = (tmp_path / "logs").rglob("events.out*")
    events = event_accumulator.EventAccumulator(str(file)).Reload()
    history = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for tag, name in (("train/loss", "train_loss"), ("eval/accuracy", "validation_accuracy")):
        logged = [(event.step, event.value) for event in events.Scalars(tag)]
        assert logged == [(line["step"], pytest.approx(line[name])) for line in history]


@pytest.mark.parametrize("freeze", ["none", "backbone"])
def test_a_head_on_a_multi_label_model_gives_probabilities_that_sum_to_1(freeze, vit, pictures, tmp_path):
    folder = shutil.copytree(vit, tmp_path / "model")
    edit_config(folder, problem_type="multi_label_classification")
    words = ["--dataset", pictures, "--output_dir", tmp_path / "run", "--freeze", freeze, *SHORT]
    command("--model", folder, *words)
    assert_all_agree(tmp_path / "run", pictures)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["problem_type"] == "single_label_classification"


@pytest.mark.skipif("HUB_MIRROR" not in os.environ, reason="needs pre-trained weights: set HUB_MIRROR")
@pytest.mark.parametrize("name", BACKBONES)
def test_a_few_steps_of_real_backbones(name, pictures, tmp_path):
    model = Path(os.environ["HUB_MIRROR"]) / "models" / name
    flags = ["--image_size", "64", "--max_steps", "3", "--per_device_train_batch_size", "16", "--warmup_steps", "1"]
    command("--model", model, "--dataset", pictures, "--output_dir", tmp_path / "run", *flags)
    assert read(tmp_path / "run")["model"]["initialized"]
    assert sum(epochs for epochs, _ in read(tmp_path / "run")["recipe"]["sizes"]) == pytest.approx(
        1
    )  # not the default 6
    assert_all_agree(tmp_path / "run", pictures)


ARCHITECTURES = {
    "resnet": {
        "num_channels": 3,
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
    "swin": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2, 1],  # the second layer of a stage shifts its windows
        "num_heads": [1, 2],
        "window_size": 4,
    },
    "dinov2": {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "mobilevit": {
        **{"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 16]},
        **{"num_attention_heads": 2, "num_channels": 3},
    },
    "beit": {
        **{"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 32, "use_relative_position_bias": True},
    },
    "swinv2": {
        **{"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]},
        **{"window_size": 4},
    },
    "efficientnet": {"image_size": 64, "width_coefficient": 0.2, "depth_coefficient": 0.1, "hidden_dim": 256},
    "siglip": {
        "vision_config": {
            **{"image_size": 32, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32},
            **{"num_hidden_layers": 1, "num_attention_heads": 2},
        }
    },
}
PROCESSORS = {
    "mobilevit": MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}),
    "efficientnet": EfficientNetImageProcessor(size={"height": 64, "width": 64}),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 32}),
}


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    """A folder with an architecture of random weights, and the processor that comes with such."""

    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / name
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, num_labels=1000, **ARCHITECTURES[name])
        AutoModelForImageClassification.from_config(config).save_pretrained(folder)
        PROCESSORS.get(name, ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("freeze", ["none", "backbone"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_of_random_weights(name, freeze, architecture, pictures, tmp_path):
    words = [
        "--dataset",
        pictures,
        "--output_dir",
        tmp_path / "run",
        "--freeze",
        freeze,
        "--num_train_epochs",
        "1",
        "--bf16",
        "true",
    ]
    command("--model", architecture(name), *words, "--train_sizes", "1:1")
    assert_all_agree(tmp_path / "run", pictures)


def test_a_head_that_takes_no_vector_is_named(pictures, tmp_path, capsys):
    folder = tmp_path / "perceiver"
    sizes = {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_blocks": 1, "num_self_attends_per_block": 1}
    config = AutoConfig.for_model(
        "perceiver", image_size=32, num_self_attention_heads=1, num_cross_attention_heads=1, **sizes
    )
    PerceiverForImageClassificationLearned(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    with pytest.raises(SystemExit):
        command("--model", folder, "--dataset", pictures, "--output_dir", tmp_path / "run", "--freeze", "backbone")
    assert "takes features of shape (1, 16) an image, not a vector" in capsys.readouterr().err


def test_a_model_of_one_size_is_trained_at_it_and_says_so_once(pictures, tmp_path, capsys):
    folder = tmp_path / "model"
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={"img_size": 64, "depth": 1, "embed_dim": 12, "num_heads": 1, "patch_size": 8},
        pretrained_cfg={
            **{"input_size": [3, 64, 64], "fixed_input_size": True, "crop_pct": 1.0, "interpolation": "bicubic"},
            **{"mean": [0.5] * 3, "std": [0.5] * 3},
        },
        num_labels=7,
    )
    TimmWrapperForImageClassification(config).save_pretrained(folder)
    words = ["--model", folder, "--dataset", pictures, "--output_dir", tmp_path / "run", *SHORT]
    command(*words, "--train_sizes", "0.5:0.5 1:0.5")
    told = capsys.readouterr().out
    assert told.count("all steps are at 64 pixels") == 1
    assert {line[1] for line in read(tmp_path / "run")["recipe"]["sizes"]} == {64}


@pytest.mark.parametrize("name", ["mobilevit", "efficientnet"])
def test_training_sees_the_pixels_that_the_processor_makes(name, architecture):
    """MobileViT's has blue first, EfficientNet's divides twice."""
    folder = architecture(name)
    image = torch.tensor([200, 100, 10], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    found = backbone.load(str(folder), list(COLOURS))
    processed = processors.process_batch(found.processor, image)
    trained_on = normalize(image.float(), *processors.mean_std(found.processor))
    torch.testing.assert_close(trained_on, processed, atol=1e-5, rtol=1e-4)
    original = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        features = [
            model.eval().base_model(pixels)[0]
            for model, pixels in (
                (found.model, processed),
                (original, processors.process_batch(load_processor(folder), image)),
            )
        ]
    torch.testing.assert_close(*features)


def test_a_mean_of_two_heads_is_refused(tmp_path):
    config = DeiTConfig(image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    DeiTImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="averages several heads"):
        backbone.load(str(tmp_path), list(COLOURS))


def test_other_names_for_labels_are_recorded(vit, pictures, tmp_path):
    """classifier.average and the push load the dataset by what run.json says."""
    (tmp_path / "names.json").write_text(json.dumps({"blue": "navy"}))
    words = [
        "--dataset",
        pictures,
        "--label_names",
        tmp_path / "names.json",
        "--output_dir",
        tmp_path / "run",
        "--bf16",
        "false",
    ]
    command("--model", vit, *words, "--freeze", "backbone", "--num_train_epochs", "1")
    assert read(tmp_path / "run")["settings"]["label_names"] == str(tmp_path / "names.json")
    assert "navy" in read(tmp_path / "run")["data"]["labels"]


def test_small_images_of_several_sizes_are_streamed(vit, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "colours")
    write_images(folder, *noise(8, size=24, seed=3))  # over the first ones
    command("--model", vit, "--dataset", folder, "--output_dir", tmp_path / "run", *SHORT)
    assert read(tmp_path / "run")["validation"]["accuracy"] > 0.25


def without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def with_few_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: t for name, t in weights.items() if "embeddings" in name}, folder / "model.safetensors", {"format": "pt"}
    )


@pytest.mark.parametrize(
    ("damage", "flags", "message"),
    [
        (lambda folder: without(folder, "config.json"), (), "no config.json"),
        (lambda folder: without(folder, "preprocessor_config.json"), (), "preprocessor_config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), (), "image classifier"),
        (lambda folder: shutil.copy(ROOT / "models/cnn/config.json", folder), (), "train.py --init_from"),
        (as_pickle, (), "no model.safetensors"),
        (with_few_weights, (), "don't fit"),
        (None, ("--image_size", "36"), "--image_size 32"),
        (None, ("--train_sizes", "large"), "0.6:0.5"),
        (None, ("--fp16", "--report_to", "nowhere"), "nowhere"),
        (None, ("--resume_from_checkpoint", "last"), "no checkpoint"),
        (None, ("--patience", "2", "--save_strategy", "no"), "--load_best_model_at_end requires"),
        (None, ("--hub_token", "mine"), "hf auth login"),
        (None, ("--metric_for_best_model", "recall", "--load_best_model_at_end"), "accuracy, f1, loss"),
        (None, ("--greater_is_better", "false"), "keeps the worst accuracy"),
        (None, ("--eval_strategy", "no"), "epoch, or steps"),
        (None, ("--fp16", "--use_cpu"), "--fp16 needs a GPU"),
        (None, ("--fsdp", "full_shard"), "torchrun"),
        (None, ("--optim", "galore_adamw"), "see --help"),
        (None, ("--optim", "adamw_torch", "--optim_args", "fast"), "see --help"),
        (None, ("--lr_scheduler_type", "cosine_with_min_lr"), "min_lr"),
        (None, ("--train_sampling_strategy", "group_by_length"), "drawn at random"),
        (None, ("--prediction_loss_only",), "no accuracy"),
        (None, ("--neftune_noise_alpha", "5"), "language models"),
        (None, ("--dataloader_persistent_workers",), "same crops"),
        (None, ("--hub_strategy", "checkpoint"), "finished folder"),
        (None, ("--gradient_accumulation_steps", "0"), "pass 1 or more"),
        (None, ("--num_train_epochs", "0"), "trains nothing"),
        (None, ("--label_smoothing_factor", "1.5"), "[0, 1)"),
        (None, ("--dataloader_drop_last", "true"), "all of the 48 training images"),
        (None, ("--photographs", "nowhere"), "no folder nowhere"),
        (None, ("--photographs", str(ROOT / "models"), "--freeze", "backbone"), "leave out --freeze backbone"),
    ],
)
def test_bad_input_is_one_line_with_the_next_step(damage, flags, message, vit, pictures, tmp_path, capfd):
    folder = shutil.copytree(vit, tmp_path / "model")
    if damage:
        damage(folder)
    with pytest.raises(SystemExit) as refused:
        command("--model", folder, "--dataset", pictures, "--output_dir", tmp_path / "run", *flags)
    assert refused.value.code == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.strip() and "decoding" not in line]
    assert message in line and not (tmp_path / "run/run.json").exists()


def test_a_pickle_is_loaded_when_asked_for(vit, tmp_path):
    folder = shutil.copytree(vit, tmp_path / "model")
    as_pickle(folder)
    found = backbone.load(str(folder), list(COLOURS), allow_pickle=True)
    assert found.initialized == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize("flags", [("--model", "user/no-such-model@v9"), ("--num_train_epoch", "3"), ("--folds", "1")])
def test_a_users_command_exits_with_2(flags, pictures, tmp_path):
    words = [sys.executable, str(ROOT / "finetune_vit.py"), "--dataset", str(pictures), *flags]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert flags[0] in result.stderr or flags[1] in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_dozen_pictures_are_enough(vit, tmp_path, capsys):
    write_images(tmp_path / "few", *noise(13))
    command("--model", vit, "--dataset", tmp_path / "few", "--output_dir", tmp_path / "run", "--freeze", "auto")
    counts = read(tmp_path / "run")["data"]["counts"]
    assert (len(counts["train"]), sum(counts["validation"])) == (4, 1) and min(counts["train"]) > 0
    assert "validation of few has no images of" in capsys.readouterr().out


def test_a_picture_a_class_is_too_few(vit, tmp_path, capsys):
    write_images(tmp_path / "few", *noise(4))
    with pytest.raises(SystemExit):
        command("--model", vit, "--dataset", tmp_path / "few", "--output_dir", tmp_path / "run")
    [line] = capsys.readouterr().err.splitlines()
    assert "too few images of class 'blue' in few to cut splits from: add more" in line
