"""Writes the results in README.md and docs/ from the JSON files in benchmarks/ and models/.

Run `python -m benchmarks.results`. It replaces the text between the pairs of marks in README.md, docs/results.md and
docs/serving.md.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from classifier.files import write_text
from classifier.records import RunRecord
from classifier.reporting import card
from classifier.reporting.formatting import join_words
from classifier.reporting.sections.performance import SCORES
from classifier.runs import RunFolder

ROOT = Path(__file__).resolve().parent.parent
IMAGES, MACHINES, PRICE = 100_000_000, 100, 0.04  # the example of docs/serving.md; dollars per vCPU-hour
BEGIN, END = "<!-- results: written by benchmarks/results.py -->", "<!-- end of results -->"


def render_install() -> str:
    """Sentences on the time and the disk space that an installation needs."""
    found = json.loads((Path(__file__).parent / "install.json").read_text())
    return (
        f"The installation takes about {found['seconds'] / 60:.0f} minutes on {describe_machine(found['machine'])}, "
        f"with other programs running, and {found['bytes'] / 1e9:.1f} GB of disk (`benchmarks/install.py`). Of these, "
        f"{found['cuda_bytes'] / 1e9:.1f} GB are libraries for NVIDIA GPUs; docs/troubleshooting.md says how to leave "
        "them out."
    )


def render_readme() -> str:
    """The table of the README: the embedded models and the fast recipe, as Markdown."""
    fast = json.loads((Path(__file__).parent / "seeds_fast.json").read_text())
    machines = [run["machine"] for run in fast["runs"]]
    rows = {
        fast["accuracy"]["mean"]: f"`train.py --recipe fast` | {fast['accuracy']['mean']:.2%} "
        f"± {fast['accuracy']['std']:.2%} | – | {fast['n_parameters'] / 1e6:.1f} M "
        f"| {card.total_time([(fast['train_seconds']['mean'], None)])}"
    }
    for folder in embedded_models():
        measured, stages = folder.evaluation.model, folder.stages
        low, high = measured.accuracy_ci95
        machines += [stage.machine.to_json() for stage in stages]
        photographs = " and ".join(f"{each.accuracy:.0%}" for each in measured.photographs)
        rows[measured.accuracy] = (
            f"`models/{folder.path.name}`, {origin(stages[0])} | {measured.accuracy:.2%} ({low:.2%} to {high:.2%}) "
            f"| {photographs or '–'} | {measured.n_parameters / 1e6:.1f} M | {card.spent(stages)}"
        )
    lines = [
        "| model | test accuracy | on photographs | parameters | training |",
        "|---|---|---|---|---|",
        *(f"| {row} |" for _, row in sorted(rows.items(), reverse=True)),
        "",
        "The accuracy is the fraction of CIFAR-10's 10,000 test pictures whose label is right, after training on 98% "
        f"of the 50,000 others{describe_other_pictures()}. In brackets: the 95% confidence interval. After ±: the "
        f"standard deviation over {len(fast['runs'])} seeds. On photographs: the same for {describe_photographs()}; "
        "settings were chosen on these, so others may be harder. The training times were measured on "
        f"{describe_machines(machines)}.",
    ]
    return "\n".join(lines)


def describe_other_pictures() -> str:
    """Which models were trained on photographs beside CIFAR-10, in words; "" if none were."""
    names = [
        f"`models/{folder.path.name}`"
        for folder in embedded_models()
        if any(stage.recipe.get("photographs") for stage in folder.stages)
    ]
    return f"; {join_words(names)} also on photographs, but not on these" if names else ""


def describe_photographs() -> str:
    """The sets of photographs that the embedded models were measured on, in words."""
    measured = next(folder.evaluation.model.photographs for folder in embedded_models())
    return join_words([f"{each.n} {each.folder} ones" for each in measured])


def render_details() -> str:
    """All results, for docs/results.md, as Markdown."""
    sections = {
        "The embedded models": render_embedded(),
        "The fast recipe over several seeds": render_seeds(),
        "Fine-tuned backbones": "\n".join(render_backbones()),
        "Fine-tuning compared with the plain recipe": render_finetuning(),
        "Settings that brought no gain": render_ablations(),
        "Ordinary photographs": render_photographs(),
        "Knowledge of the pre-trained backbone": render_forgetting(),
        "Scores of out-of-distribution detection": render_ood_scores(),
        "Copies in the test split": render_duplicates(),
        "The app": render_serving(),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())


def embedded_models() -> list[RunFolder]:
    """The folders of the embedded models."""
    return [RunFolder(path.parent) for path in sorted((ROOT / "models").glob("*/evaluation.json"))]


def render_embedded() -> str:
    """The table of the embedded models, and what its words mean."""
    lines = [
        "| model | test accuracy (95% interval) | macro F1 | with one view | parameters | training | GFLOP per image |",
        "|---|---|---|---|---|---|---|",
    ]
    trained_on: list[dict] = []
    for folder in embedded_models():
        measured, stages = folder.evaluation.model, folder.stages
        low, high = measured.accuracy_ci95
        one_view = measured.accuracy if measured.accuracy_one_view is None else measured.accuracy_one_view
        flops = sum(stage.train_flops for stage in stages)
        trained_on += [stage.machine.to_json() for stage in stages]
        how = f", in {len(stages)} stages" if len(stages) > 1 else ""
        how += ", averaged" if stages[-1].averaged else ""
        views = f" ({measured.views} views)" if measured.views else ""
        lines.append(
            f"| `models/{folder.path.name}`, {origin(stages[0])} "
            f"| {measured.accuracy:.2%} ({low:.2%} to {high:.2%}) "
            f"| {measured.f1:.4f} | {one_view:.2%} | {measured.n_parameters / 1e6:.1f} M "
            f"| {card.spent(stages)}{how}, {flops / 1e15:.2f} PFLOP "
            f"| {folder.timing.model.flops / 1e9:.2f}{views} |"
        )
    lines += [
        "",
        "A view is the picture itself, its mirror image, or the picture shifted by a pixel; the CNN averages the "
        "probabilities of several views. A stage is a training run that starts from the weights of the previous stage. "
        f"The times were measured on {describe_machines(trained_on)}, mostly while other programs were running. All "
        "models were trained in bfloat16.",
    ]
    return "\n".join(lines)


def render_seeds() -> str:
    """The table of recipes that were run with several seeds."""
    lines = [
        "| recipe, mean ± standard deviation over seeds | test accuracy | with one view | training | images/s |",
        "|---|---|---|---|---|",
    ]
    machines: list[dict] = []
    for path in sorted(Path(__file__).parent.glob("seeds_*.json")):
        found = json.loads(path.read_text())

        def spread(name: str, form: str, scale: float = 1, found=found) -> str:
            return f"{found[name]['mean'] * scale:{form}} ± {found[name]['std'] * scale:{form}}"

        lines.append(
            f"| `--recipe {found['recipe']}`, {len(found['runs'])} seeds, {found['views']} views "
            f"| {spread('accuracy', '.2f', 100)}% | {spread('accuracy_one_view', '.2f', 100)}% "
            f"| {spread('train_seconds', '.0f')} s, {found['runs'][0]['train_flops'] / 1e15:.2f} PFLOP "
            f"| {spread('images_per_second', ',.0f')} |"
        )
        machines += [run["machine"] for run in found["runs"]]
    lines += ["", f"The times were measured on {describe_machines(machines)}, with nothing else running."]
    return "\n".join(lines)


def render_serving() -> str:
    """The app's start, and its speed with many images and with many clients."""
    startup, gallery, load = (
        json.loads((Path(__file__).parent / f"{name}.json").read_text()) for name in ("startup", "gallery", "load")
    )
    first, memory, rows = startup["first_answer_s"], startup["resident_mb"], load["rows"]
    right, asked = sum(row["outcomes"]["right"] for row in rows), sum(row["requests"] for row in rows)
    both = 1 / (1 / load["echo"]["requests_per_second"] + 1 / load["judged_images_per_second"])
    lines = [
        f"**Start.** `python app.py` gives its first answer after {first['median']:.1f} s ({first['min']:.1f} to "
        f"{first['max']:.1f} s in {startup['runs']} starts, `benchmarks/startup.py`). With its workers it then uses "
        f"{memory['median'] / 1024:.1f} GB of memory.",
        "",
        f"**Many pictures.** {gallery['photographs']} photographs of {math.prod(gallery['pixels']) / 1e6:.0f} "
        f"megapixels through `/classify_gallery` take {gallery['app_s']:.1f} s and {gallery['app_resident_mb']:,} MB "
        f"of memory. That is {gallery['obvious_over_app']:.1f} times as fast as a `gr.Gallery` with a `pipeline`, and "
        f"takes {gallery['app_over_parts']:.2f} times as long as upload, decoding and model alone "
        "(`benchmarks/gallery.py`).",
        "",
        f"**Many clients.** Of {asked:,} single requests, {right:,} got the right answer (`benchmarks/load.py`). One "
        "request in a hundred takes longer than the last column says.",
        "",
        "| clients at a time | requests per second | 99th percentile of the latency |",
        "|---|---|---|",
        *(f"| {row['clients']} | {row['requests_per_second']:.1f} | {row['latency_s']['p99']:.2f} s |" for row in rows),
        "",
        f"The clients run on the same {load['machine']['threads']} cores as the app. An app that only returns the "
        f"file, together with the prediction alone, would reach {both:.0f} requests per second there.",
    ]
    return "\n".join(lines)


def locate(model: str) -> str:
    """The folder of a model that a benchmark names, as Markdown; or those of several, joined by +."""
    if " + " in model:
        return " + ".join(map(locate, model.split(" + ")))
    return f"`{'models' if (ROOT / 'models' / model).exists() else 'runs'}/{model}`"


def render_photographs() -> str:
    """The table of the accuracy of the models on photographs, and of what their thresholds do."""
    found = json.loads((Path(__file__).parent / "photographs.json").read_text())

    def cell(row: dict, name: str) -> str:
        low, high = row[f"{name}_ci95"]
        return f"{row[name]:.1%} ({low:.0%} to {high:.0%})"

    def threshold(model: dict) -> str:
        low, high = model["ood_threshold_ci95"]
        return f"{SCORES[model['ood_score']]}, {model['ood_threshold']:.3g} ({low:.3g} to {high:.3g})"

    rows = []
    for model in found["models"]:
        for name, row in model["folders"].items():
            cells = [cell(row["cross_validated"], key) for key in ("accuracy", "kept", "flagged")]
            cells = [locate(model["model"]), name, *cells, f"{row['auroc']:.3f}", threshold(model)]
            rows.append(f"| {' | '.join(cells)} |")
    counts = [
        f"“{name}” are {n['labels']} of the ten classes and {n['none']} of other things"
        for name, n in found["photographs"].items()
    ]
    of_validation = [
        f"{model['threshold_of_validation']:.3g} ({SCORES[model['ood_score']]} of {locate(model['model'])})"
        for model in found["models"]
    ]
    lines = [
        f"On photographs that no model was fine-tuned on; {join_words(counts)} (`benchmarks/photographs.py`). The "
        "untidy ones are samples of ImageNet, which the backbones were pre-trained on:",
        "",
        "| model | photographs | accuracy (95% interval) | kept | others flagged | AUROC | threshold (95% interval) |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        "“Kept” is the share of the photographs of the ten classes that count as known, “others flagged” the share of "
        "the others that do not. Both, and the accuracy, are cross-validated: for each fifth of the photographs, the "
        "size to which they are reduced, the score of out-of-distribution detection and its threshold were chosen on "
        "the others. Card and report have the shares with the saved settings, which were chosen on all photographs; "
        "the AUROC here is with these, too. The threshold is the highest score that 95% of the correctly labelled ones "
        f"of each folder reach, and 95% of the validation images: {join_words(of_validation)} on validation alone. "
        "Where photographs lower it, fewer small images of other things are flagged. The recipes were chosen on these "
        "photographs too.",
        "",
        "`models/vit` was trained on other photographs beside CIFAR-10: on parts of "
        "[Caltech-101](https://doi.org/10.22002/D1.20086) (Li, Andreeto, Ranzato and Perona, CC BY 4.0) and of the "
        "[Oxford-IIIT Pet Dataset](https://www.robots.ox.ac.uk/~vgg/data/pets/) (Parkhi, Vedaldi, Zisserman and "
        "Jawahar, CC BY-SA 4.0), which `benchmarks/training_photographs.py` sorts. They have no deer, frogs, horses "
        "and trucks.",
    ]
    return "\n".join(lines)


def render_forgetting() -> str:
    """The table of what shares of the pre-trained weights, and ways to cut photographs, do."""
    found = json.loads((Path(__file__).parent / "forgetting.json").read_text())
    names = list(found["photographs"])
    lines = [
        "Fine-tuning on small images makes a backbone forget what it knew of photographs. What a share of the "
        "pre-trained weights brings back, and what another cut of the photographs does (`benchmarks/forgetting.py`; "
        "AUROC as below, by the energy). Here all photographs are reduced to the model's input size; "
        "`models/mobilenet` gets smaller ones in use, of which it recognises more:",
        "",
        f"| model | pre-trained weights | cut | validation | {' | '.join(f'{name} | AUROC' for name in names)} |",
        f"|{'---|' * (4 + 2 * len(names))}",
    ]
    for row in found["rows"]:
        cells = [
            locate(row["model"]),
            f"{row['pretrained_share']:.0%}",
            row["cut"],
            f"{row['validation_accuracy']:.1%}",
        ]
        for name in names:
            cells += [f"{row[name]['accuracy']:.1%}", f"{row[name]['auroc']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_ood_scores() -> str:
    """The table of the AUROCs of each score, on sets that are made and on photographs."""
    found = json.loads((Path(__file__).parent / "ood_scores.json").read_text())
    photographs = found["photographs"]
    columns = " | ".join(f"{name} | flagged | small copy | flagged" for name in photographs)
    lines = [
        "AUROC, the probability that a picture of one of the labels gets a higher score than another one, of scores "
        f"that are fitted on {found['training_images']:,} training images (`benchmarks/ood_scores.py`). “Made” is the "
        "mean over the sets that `evaluate.py` makes, here of validation images. “Near” compares validation images "
        "with copies of 32 × 32 pixels of the photographs of other things. “Flagged” is the share of the "
        "photographs of other things that are flagged when 95% of the correctly classified ones are not. In the "
        "columns of a small copy, a score is the mean of that of the photograph and that of a copy of 32 × 32 pixels. "
        "“Agreement” is the highest mean of the probabilities that several models give a label.",
        "",
        f"| model | score | made | near | {columns} |",
        f"|{'---|' * (4 + 4 * len(photographs))}",
    ]
    for row in found["rows"]:
        near = f"{row['near']:.3f}" if "near" in row else ""
        name = SCORES.get(row["score"], row["score"])
        cells = [locate(row["model"]), name, f"{statistics.mean(row['made'].values()):.3f}", near]
        for name in photographs:
            for each in (row[name]["alone"], row[name]["with_small"]):
                cells += [f"{each['auroc']:.3f}", f"{each['none_flagged_where_95_of_right_ones_pass']:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    rights = []
    for model, row in {row["model"]: row for row in found["rows"]}.items():
        shares = [f"{row[name]['accuracy']:.1%} of “{name}”" for name in photographs]
        rights.append(f"{locate(model)} {', '.join(shares)}, {row['validation_accuracy']:.1%} of validation")
    counts = [f"“{name}” are {n['labels']} of the labels and {n['none']} of none" for name, n in photographs.items()]
    return "\n".join([*lines, "", f"Of the photographs, {join_words(counts)}. Right are: {'; '.join(rights)}."])


def render_duplicates() -> str:
    """The table of the accuracy with and without the test images that have a copy in train."""
    found = json.loads((Path(__file__).parent / "duplicates.json").read_text())
    lines = [
        f"`classifier.clean` finds that {found['test_images_with_a_copy_in_train']} of CIFAR-10's "
        f"{found['clean']['readable']['test']:,} test images have a copy in train, exact, near or mirrored "
        "(`benchmarks/duplicates.py`):",
        "",
        "| model | accuracy on all test images | without those that have a copy |",
        "|---|---|---|",
        *(
            f"| `models/{row['model']}` | {row['all']['accuracy']:.2%} | {row['without_copies']['accuracy']:.2%} |"
            for row in found["models"]
        ),
    ]
    return "\n".join(lines)


def describe_machine(machine: dict) -> str:
    """The machine of a run.json, in words."""
    return describe_machines([machine])


def describe_machines(machines: list[dict]) -> str:
    """Several machines of run.json files, in words."""
    threads = sorted({machine["threads"] for machine in machines if not machine["accelerator"]})
    processors = sorted(
        {f"an {machine['processor']} ({machine['instructions']})" for machine in machines if not machine["accelerator"]}
    )
    accelerators = sorted({f"an {machine['accelerator']}" for machine in machines if machine["accelerator"]})
    cpus = f"{' or '.join(map(str, threads))} {'thread' if threads == [1] else 'threads'} of {' or '.join(processors)}"
    return " or ".join([*([cpus] if threads else []), *accelerators])


def origin(first: RunRecord) -> str:
    """The recipe or the pre-trained weights that the first stage started from, in words."""
    return f"recipe {first.settings['recipe']}" if "recipe" in first.settings else f"from {first.start}"


def render_backbones() -> list[str]:
    """Lines of the table of fine-tuned backbones, and of the paragraph that compares them."""
    found = json.loads((Path(__file__).parent / "backbones.json").read_text())
    rows = sorted(found["rows"], key=accuracy, reverse=True)
    lines = [
        "| backbone | trained | pixels | training | images/s | validation | test (95% interval) | macro F1 | MB | "
        "one image |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["test_accuracy_ci95"]
        stages = f", {len(row['stages'])} stages" if len(row["stages"]) > 1 else ""
        stages += ", averaged" if row["averaged"] else ""
        lines.append(
            f"| {row['backbone']} | {row['trained']}{stages} | {row['image_size']} | {total_time(row['stages'])} "
            f"| {' / '.join(describe_speeds(row['stages']))} | {row['validation_accuracy']:.2%} "
            f"| {row['test_accuracy']:.2%} ({low:.2%} to {high:.2%}) | {row['f1']:.4f} "
            f"| {row['megabytes']:.1f} | {row['latency_ms']['median']:.1f} ms |"
        )
    lines.append("| ConvNeXt | | | | | | | | | not measured; tests fine-tune one with random weights |")
    best = rows[0]
    small = max((row for row in rows if row["megabytes"] < best["megabytes"]), key=accuracy)
    less, size = accuracy(best) - accuracy(small), small["megabytes"] / best["megabytes"]
    time = small["latency_ms"]["median"] / best["latency_ms"]["median"]
    whole = {row["backbone"]: row for row in reversed(rows) if row["trained"] == "all"}
    heads = [row for row in rows if row["trained"] == "head"]
    lost = [100 * (accuracy(whole[row["backbone"]]) - accuracy(row)) for row in heads]
    spent = [stage["train_seconds"] / 60 for row in heads for stage in row["stages"]]
    machines = [stage["machine"] for row in rows for stage in row["stages"]]
    lines += [
        "",
        f"The most accurate model is {best['backbone']} in {len(best['stages'])} stages. {small['backbone']} is "
        f"{100 * less:.2f} points less accurate, with {size:.2f} of the size and {time:.2f} of the latency. Training "
        f"only the head takes {min(spent):.0f} to {max(spent):.0f} minutes, and is {min(lost):.1f} to "
        f"{max(lost):.1f} points less accurate than training all weights.",
        "",
        f"Each model was trained once (one seed), on {describe_machines(machines)}; during the long runs other "
        "programs were running. The latency of one image is that of the app's compiled model, on "
        f"{describe_machine(found['machine'])}, with nothing else running (`benchmarks/backbones.py`).",
    ]
    return lines


def describe_speeds(stages: list[dict]) -> list[str]:
    """Images per second of the stages on CPUs, then of those on accelerators."""
    kinds = [[s for s in stages if bool(s["machine"]["accelerator"]) is accelerated] for accelerated in (False, True)]
    return [
        f"{sum(s['images_seen'] for s in kind) / sum(s['train_seconds'] for s in kind):,.0f}" for kind in kinds if kind
    ]


def render_ablations() -> str:
    """The table of the settings of fine-tuning that were tried, the best first."""
    found = json.loads((Path(__file__).parent / "ablations.json").read_text())
    tried = {name: list(variant["validation_accuracy"].values()) for name, variant in found["variants"].items()}
    rows = [
        f"| {name} | {statistics.mean(values):.2%} ± {statistics.stdev(values):.2%} |"
        for name, values in sorted(tried.items(), key=lambda item: -statistics.mean(item[1]))
    ]
    [seeds] = {len(values) for values in tried.values()}
    lines = [
        f"Tried with {found['model']} on 10,000 training and 5,000 validation images (`benchmarks/ablations.py`):",
        "",
        f"| setting | validation accuracy, mean ± standard deviation over {seeds} seeds |",
        "|---|---|",
        *rows,
        "",
        "In two epochs no setting gains more than the difference between seeds, so none of them is a default.",
    ]
    return "\n".join(lines)


def render_finetuning() -> str:
    """Sentences that compare fine-tuning with the plain recipe."""
    timed = json.loads((Path(__file__).parent / "finetune.json").read_text())
    plain, ours = timed["plain"], timed["ours"]["runs"]
    low, high = (f"{pick(run['validation_accuracy'] for run in ours):.2%}" for pick in (min, max))
    short, long = (f"{pick(run['seconds'] for run in ours):.0f}" for pick in (min, max))
    command = " ".join(["finetune_vit.py", *timed["ours"]["flags"]])
    return (
        f"On {timed['max_train_samples']:,} training images, `{command}` takes {short} to {long} s in all and reaches "
        f"{low} to {high} on {timed['max_eval_samples']:,} validation images ({len(ours)} seeds). The plain recipe "
        f"(Trainer's defaults: float32, 224 pixels, batches of 8) takes {plain['seconds']:.0f} s and reaches "
        f"{plain['validation_accuracy']:.2%}. The slowest seed needs {timed['share_of_time']:.2f} of that time "
        f"(`benchmarks/finetune.py`, {describe_machine(timed['machine'])})."
    )


def total_time(stages: list[dict]) -> str:
    """The training time of all stages of a row of backbones.json, in words."""
    return card.total_time([(stage["train_seconds"], stage["machine"]["accelerator"]) for stage in stages])


def accuracy(row: dict) -> float:
    """The test accuracy of a row of backbones.json."""
    return row["test_accuracy"]


def render_scale() -> str:
    """The speed of classifier.predict on one and two cores, and time and cost on a hundred machines, as Markdown."""
    path = Path(__file__).parent / "scale.json"
    if not path.exists():
        return "Not measured yet: run `python -m benchmarks.scale`."
    found = json.loads(path.read_text())
    lines = [
        "| images | model | one core | two cores, one process | two cores, two processes | start of a process |",
        "|---|---|---|---|---|---|",
    ]
    ways: dict[tuple[str, str], dict] = {}
    for row in found["rows"]:
        ways.setdefault((row["kind"], row["model"]), {})[row["cores"], row["processes"]] = row
    for (kind, model), way in ways.items():
        speeds = (f"{describe_spread(way[cores, n]['images_per_second'])}" for cores, n in ((1, 1), (2, 1), (2, 2)))
        lines.append(
            f"| {kind}, {found['kinds'][kind]['bytes_per_image'] / 1e3:.1f} kB | `models/{model}` | "
            f"{' | '.join(speeds)} "
            f"| {way[1, 1]['start_s']['median']:.0f} s |"
        )
    photographs, listed = found["kinds"]["photographs"], found["files_listed_per_second"]["median"]
    lines += [
        "",
        f"Images per second: median, minimum and maximum of {found['rounds']} rounds of {found['images']:,} images, by "
        f"`benchmarks/scale.py` on {describe_machine(found['machine'])}. The photographs are copies of "
        f"{photographs['distinct']}, of {photographs['median_megapixels']:.1f} megapixels (median), in the page cache. "
        f"A process lists {listed:,.0f} names of a local folder per second.",
        "",
        f"{IMAGES / 1e6:.0f} million images on {MACHINES} such machines, {2 * MACHINES} processes:",
        "",
        "| images | model | hours | vCPU-hours | cost | total input | input per machine | shard | overhead |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (kind, model), way in ways.items():
        size, speed = found["kinds"][kind]["bytes_per_image"], way[2, 2]["images_per_second"]["median"]
        hours, start, processes = IMAGES / MACHINES / speed / 3600, way[1, 1]["start_s"]["median"], 2 * MACHINES
        shard = (IMAGES * start * (speed / 2) / processes) ** 0.5
        # Starts, and the wait for the last shard, as a fraction of `hours`
        overhead = 2 * (start * (speed / 2) * processes / IMAGES) ** 0.5
        lines.append(
            f"| {kind} | `models/{model}` | {hours:.1f} | {hours * processes:,.0f} | ${hours * processes * PRICE:,.0f} "
            f"| {IMAGES * size / 1e12:.2g} TB | {speed * size / 1e6:.2g} MB/s | {round(shard, -3):,.0f} images | "
            f"{overhead:.0%} |"
        )
    lines += [
        "",
        f"Each process lists the names of all files. For {IMAGES / 1e6:.0f} million single files on a local disk, "
        f"that takes {IMAGES / listed / 60:.0f} minutes.",
    ]
    return "\n".join(lines)


def describe_spread(found: dict) -> str:
    """Median, minimum and maximum as text."""
    return f"{found['median']:,.1f} ({found['min']:,.1f} to {found['max']:,.1f})"


def place(text: str, renderers: Sequence[Callable[[], str]]) -> str:
    """`text` with the current results between the marks; the first renderer is that of the first pair of marks."""
    before, *parts = text.split(BEGIN)
    for part, rendered in zip(parts, renderers, strict=True):
        before += f"{BEGIN}\n{rendered()}\n{END}{part.split(END)[1]}"
    return before


PAGES: dict[str, list[Callable[[], str]]] = {
    "README.md": [render_install, render_readme],
    "docs/results.md": [render_details],
    "docs/serving.md": [render_scale],
}

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, renderers in PAGES.items():
        write_text(ROOT / name, place((ROOT / name).read_text(), renderers))
