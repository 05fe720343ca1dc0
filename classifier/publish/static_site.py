"""Writes a web site that runs a model in the visitor's browser: a static Space, which everyone can host for nothing.

    files = write_site(Path("models/vit"), Path("runs/site"))
    push_site(Path("runs/site"), files, "user/name")

The site is space/static_site, the model as ONNX with weights in float16, model.json with what the page has to know of
it, and onnxruntime-web from node_modules, so that it loads nothing from elsewhere.
"""

import shutil
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceCard, SpaceCardData

from classifier.errors import HubError, ModelError
from classifier.files import move_files, read_json, write_json, write_text
from classifier.hub import REFUSED, advice
from classifier.models.predictor import Predictor, load_predictor
from classifier.models.processor import PixelSteps, pixel_steps
from classifier.publish.export import write_onnx
from classifier.publish.onnx_exports import halve_weights
from classifier.runs import sha256

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "space" / "static_site"
ENGINE = ROOT / "node_modules" / "onnxruntime-web"
ENGINE_FILES = [f"ort-wasm-simd-threaded{kind}.{suffix}" for kind in ("", ".asyncify") for suffix in ("mjs", "wasm")]
ENGINE_FILES += ["ort.wasm.min.mjs", "ort.webgpu.min.mjs"]
MODELS = "model-*.onnx"  # named by its digest, so that a browser never has settings of one model and weights of another
FILTERS = ("bilinear", "bicubic", "lanczos")  # of pixels.js
# Threads of WebAssembly share memory, which browsers allow to pages that are isolated from other sites only.
HEADERS = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}


def write_site(model: str | Path, output_dir: Path, repo: str | None = None) -> list[str]:
    """Writes the site for a model, whole or not at all.

    Args:
        model: folder, Hub id or `id@revision`.
        output_dir: folder for the site: a new one, an empty one, or that of an earlier site.
        repo: `user/name` of the Space, for its title.

    Returns:
        The names of the files, relative to the folder.

    Raises:
        ModelError: the model can't be loaded or exported, its processor does more than the page can, there is no
            onnxruntime-web, or the folder holds something else.
    """
    if not SITE.is_dir() or not ENGINE.is_dir():
        raise ModelError(
            f"no {(SITE if not SITE.is_dir() else ENGINE).relative_to(ROOT)} in {ROOT}: run the command in a checkout "
            "of the project, after `npm ci`"
        )
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (output_dir / "model.json").is_file():
        raise ModelError(f"{output_dir} holds other files than a site: name another --output_dir")
    predictor = load_predictor(model, device="cpu")
    steps = supported_steps(predictor)
    with TemporaryDirectory() as temporary:
        site, exact, half = (Path(temporary, name) for name in ("site", "exact.onnx", "half.onnx"))
        shutil.copytree(SITE, site)
        (site / "onnxruntime").mkdir()
        for name in ENGINE_FILES:
            shutil.copyfile(ENGINE / "dist" / name, site / "onnxruntime" / name)
        write_onnx(exact, predictor)
        halve_weights(exact, half)
        weights = MODELS.replace("*", sha256(half)[:8])
        half.rename(site / weights)
        write_json(site / "model.json", describe(predictor, steps, weights))
        write_text(site / "README.md", str(readme(predictor, repo)))
        files = sorted(path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file())
        old = [path for path in output_dir.glob(MODELS) if path.name != weights]
        output_dir.mkdir(parents=True, exist_ok=True)
        move_files({site: output_dir}, remove=old)
    return files


def supported_steps(predictor: Predictor) -> PixelSteps:
    """The steps of the model's processor; ModelError if the page can't do them, or they don't lead to one size."""
    assert predictor.folder is not None  # it was loaded from one
    config = read_json(predictor.folder / "config.json")
    steps = pixel_steps(config, {} if "pretrained_cfg" in config else predictor.processor.to_dict())
    sides = (steps.size or (steps.shortest_edge or 0,) * 2) if steps else (0, 0)
    crop = steps.crop if steps else None
    fits = crop is None or (crop[0] <= sides[0] and crop[1] <= sides[1])
    if steps is None or steps.resample.lower() not in FILTERS or not (steps.size or crop) or not fits:
        raise ModelError(
            f"the processor of {predictor.name} does not resize, crop and normalise pictures to one size by "
            f"{', '.join(FILTERS)}, which is all that the page can do: use the Gradio Space"
        )
    return steps


def push_site(site: Path, files: list[str], repo: str, *, private: bool = False) -> str:
    """Creates or updates a static Space with the files of a site, in one commit; gives the commit's address.

    Raises:
        HubError: there is a Space of another kind, or the Hub rejected the request or can't be reached.
    """
    try:
        api = HfApi()
        api.create_repo(repo, repo_type="space", space_sdk="static", private=private or None, exist_ok=True)
        if (sdk := api.space_info(repo).sdk) not in (None, "static"):
            raise HubError(f"{repo} is a Space of the kind {sdk}, which this would replace: give another name")
        there = api.list_repo_files(repo, repo_type="space")
        old = [name for name in there if name not in files and fnmatch(name, MODELS)]
        sent = api.create_commit(
            repo,
            [*(CommitOperationAdd(name, site / name) for name in files), *map(CommitOperationDelete, old)],
            repo_type="space",
            commit_message=f"Classify pictures in the browser by {read_json(site / 'model.json')['name']}",
        )
    except REFUSED as error:
        raise HubError(f"the Hub did not take the Space {repo} ({advice(error)}): give the command again") from error
    return sent.commit_url


def describe(predictor: Predictor, steps: PixelSteps, weights: str) -> dict:
    """The content of model.json: the file of the model, and what the page shows and does with pictures and logits."""
    facts = [predictor.name]
    if predictor.accuracy is not None and predictor.accuracy_ci95 is not None:
        low, high = predictor.accuracy_ci95
        facts.append(f"Test accuracy {predictor.accuracy:.1%} ({low:.1%} to {high:.1%})")
    if predictor.measured and (accuracy := predictor.measured.accuracy_on_photographs) is not None:
        facts.append(f"{accuracy:.1%} of {predictor.measured.n_photographs:,} photographs")
    return {
        "name": predictor.name,
        "weights": weights,
        "labels": predictor.labels,
        "facts": facts,
        "reduce_to": predictor.reduce_to,
        "steps": asdict(steps) | {"resample": steps.resample.lower()},
        "ood": {
            "score": predictor.ood_score,
            "threshold": predictor.ood_threshold,
            "resize_to": predictor.ood_resize_to,
        },
    }


def readme(predictor: Predictor, repo: str | None) -> SpaceCard:
    """The README.md of the Space, with the settings that the Hub reads."""
    data = SpaceCardData(
        title=(repo or predictor.name).rpartition("/")[2],
        emoji="🐸",
        sdk="static",
        app_file="index.html",
        license="apache-2.0",
        tags=["image-classification"],
        custom_headers=HEADERS,
    )
    return SpaceCard.from_template(
        data,
        template_str="---\n{{ card_data }}\n---\n\nClassifies pictures in the browser: nothing leaves the device.\n",
    )
