"""Writes the README's results from the files that hold them: *.json here, run.json and evaluation.json in models/.

python -m benchmarks.results

Rewrites what is between the two marks in README.md, docs/results.md and docs/scale.md.
"""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

from classifier.files import write_text
from classifier.records import RunRecord
from classifier.reporting import card
from classifier.runs import RunFolder

ROOT = Path(__file__).resolve().parent.parent
IMAGES, MACHINES, PRICE = 100_000_000, 100, 0.04  # docs/scale.md's example; the price is dollars a vCPU-hour
BEGIN, END = "<!-- results: written by benchmarks/results.py -->", "<!-- end of results -->"


def render() -> str:
    """The README's results as Markdown: of the embedded models, of a recipe over seeds, and of the app."""
    lines = [
        "| model | test accuracy (95% interval) | macro F1 | in one view | parameters | training | GFLOP an image |",
        "|---|---|---|---|---|---|---|",
    ]
    trained_on: list[dict] = []
    for path in sorted(path.parent for path in (ROOT / "models").glob("*/evaluation.json")):
        folder = RunFolder(path)
        measured, stages = folder.evaluation.model, folder.stages
        low, high = measured.accuracy_ci95
        one_view = measured.accuracy if measured.accuracy_one_view is None else measured.accuracy_one_view
        flops = sum(stage.train_flops for stage in stages)
        trained_on += [stage.machine.to_json() for stage in stages]
        how = f", in {len(stages)} stages" if len(stages) > 1 else ""
        how += ", averaged" if stages[-1].averaged else ""
        views = f" ({measured.views} views)" if measured.views else ""
        lines.append(
            f"| `models/{path.name}`, {origin(stages[0])} "
            f"| {measured.accuracy:.2%} ({low:.2%} to {high:.2%}) "
            f"| {measured.f1:.4f} | {one_view:.2%} | {measured.n_parameters / 1e6:.1f} M "
            f"| {card.spent(stages)}{how}, {flops / 1e15:.2f} PFLOP "
            f"| {folder.timing.model.flops / 1e9:.2f}{views} |"
        )
    lines += [
        "",
        "| recipe, mean ± standard deviation over seeds | test accuracy | in one view | training | images/s |",
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
    lines += [
        "",
        "A view is the picture as it is, mirrored, or shifted by a pixel: the CNN averages over some. A stage is a "
        "run that "
        f"goes on from the weights of the one before. Times of the first table are of {tell_machines(trained_on)}, "
        "mostly "
        f"beside other work; those of the second of {tell_machines(machines)}, with nothing else running. All in "
        "bfloat16.",
        "",
        render_finetuning(),
    ]
    startup = json.loads((Path(__file__).parent / "startup.json").read_text())
    first, memory = startup["first_answer_s"], startup["resident_mb"]
    lines += [
        "",
        f"`python app.py` gives its first answer after {first['median']:.1f} s ({first['min']:.1f} to "
        f"{first['max']:.1f}, "
        f"{startup['runs']} starts, `benchmarks/startup.py`) and then holds {memory['median'] / 1024:.1f} GB with "
        "its workers. " + render_serving(),
    ]
    return "\n".join(lines)


def render_details() -> str:
    """What docs/results.md has beside the README, as Markdown."""
    return "\n".join([*render_backbones(), "", render_ablations(), "", render_photographs()])


def render_serving() -> str:
    """What the app does under many images and many clients, in words."""
    gallery, load = (json.loads((Path(__file__).parent / f"{name}.json").read_text()) for name in ("gallery", "load"))
    rows, big = load["rows"], f"{math.prod(gallery['pixels']) / 1e6:.0f}"
    right, asked = sum(row["outcomes"]["right"] for row in rows), sum(row["requests"] for row in rows)
    speeds = ", ".join(
        f"{row['requests_per_second']:.1f} a second to {row['clients']} (p99 {row['latency_s']['p99']:.2f} s)"
        for row in rows
    )
    both = 1 / (1 / load["echo"]["requests_per_second"] + 1 / load["judged_images_per_second"])
    return (
        f"{gallery['photographs']} photographs of {big} megapixels through `/classify_gallery` take "
        f"{gallery['app_s']:.1f} s, "
        f"{gallery['obvious_over_app']:.1f} times as fast as a `gr.Gallery` with a `pipeline`, and "
        f"{gallery['app_over_parts']:.2f} of what upload, decoding and model take alone, in "
        f"{gallery['app_resident_mb']:,} MB "
        f"(`benchmarks/gallery.py`). Of {asked:,} single requests {right:,} were answered, and right: {speeds}. The "
        "clients "
        f"are on the same {load['machine']['threads']} cores, which an echo and a bare prediction together keep "
        f"busy at {both:.0f} a second (`benchmarks/load.py`)."
    )


def render_photographs() -> str:
    """What the models make of ordinary photographs, in words."""
    found = json.loads((Path(__file__).parent / "photographs.json").read_text())
    each = []
    for row in sorted(found["models"], key=lambda row: -row["accuracy"]):
        (low, high), flagged = row["accuracy_ci95"], row["none_flagged_where_95_of_right_ones_pass"]
        where = "models" if (ROOT / "models" / row["model"]).exists() else "runs"
        right = f"`{where}/{row['model']}` has {row['accuracy']:.1%} right ({low:.0%} to {high:.0%})"
        each.append(f"{right} and flags {flagged:.0%} (AUROC {row['auroc']:.2f})")
    n = found["photographs"]
    return (
        f"Of {n['labels']} ordinary photographs of the labels and {n['none']} of none (`benchmarks/photographs.py`), "
        f"{'; '.join(each)}, where 95% of those that are right pass. They chose each model's reduction and "
        "threshold, and the "
        "stage of the ViT that is embedded, so none of this is held out."
    )


def tell_machine(machine: dict) -> str:
    """A machine of run.json, in words."""
    return tell_machines([machine])


def tell_machines(machines: list[dict]) -> str:
    """Some machines of run.json together, in words."""
    threads = sorted({machine["threads"] for machine in machines if not machine["accelerator"]})
    processors = sorted(
        {f"an {machine['processor']} ({machine['instructions']})" for machine in machines if not machine["accelerator"]}
    )
    accelerators = sorted({f"an {machine['accelerator']}" for machine in machines if machine["accelerator"]})
    told = [
        f"{' or '.join(map(str, threads))} {'thread' if threads == [1] else 'threads'} of {' or '.join(processors)}"
    ]
    return " or ".join([*(told if threads else []), *accelerators])


def origin(first: RunRecord) -> str:
    """What the weights started from, in words, by the record of the first stage."""
    return f"recipe {first.settings['recipe']}" if "recipe" in first.settings else f"from {first.start}"


def render_backbones() -> list[str]:
    """Lines of the table of fine-tuned backbones, and which is best."""
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
            f"| {' / '.join(tell_speeds(row['stages']))} | {row['validation_accuracy']:.2%} "
            f"| {row['test_accuracy']:.2%} ({low:.2%} to {high:.2%}) | {row['f1']:.4f} "
            f"| {row['megabytes']:.1f} | {row['latency_ms']['median']:.1f} ms |"
        )
    lines.append("| ConvNeXt | | | | | | | | | not measured: tests tune one with random weights |")
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
        f"Best is {best['backbone']}, in {len(best['stages'])} stages, where accuracy is what counts; where size or "
        "time does, "
        f"{small['backbone']}, {100 * less:.2f} points less at {size:.2f} of its bytes and {time:.2f} of its latency. "
        f"A head alone takes {min(spent):.0f} to {max(spent):.0f} minutes and has {min(lost):.1f} to "
        f"{max(lost):.1f} points less than all of it. One seed each, trained on {tell_machines(machines)}, the long "
        "ones "
        f"beside other work; one image is timed as the app computes it, on {tell_machine(found['machine'])}, with "
        "nothing else running (`benchmarks/backbones.py`).",
    ]
    return lines


def tell_speeds(stages: list[dict]) -> list[str]:
    """Images a second of stages on processors, then of those on accelerators."""
    kinds = [[s for s in stages if bool(s["machine"]["accelerator"]) is accelerated] for accelerated in (False, True)]
    return [
        f"{sum(s['images_seen'] for s in kind) / sum(s['train_seconds'] for s in kind):,.0f}" for kind in kinds if kind
    ]


def render_ablations() -> str:
    """What was tried for fine-tuning, in words, the best first."""
    found = json.loads((Path(__file__).parent / "ablations.json").read_text())
    tried = {name: list(variant["validation_accuracy"].values()) for name, variant in found["variants"].items()}
    each = [
        f"{name} {statistics.mean(values):.2%} ± {statistics.stdev(values):.2%}"
        for name, values in sorted(tried.items(), key=lambda item: -statistics.mean(item[1]))
    ]
    [seeds] = {len(values) for values in tried.values()}
    return (
        f"Tried on a cut of 10,000 training and 5,000 validation images with {found['model']} (mean ± standard "
        "deviation of "
        f"{seeds} seeds, `benchmarks/ablations.py`): {', '.join(each)}. "
        "In two epochs none gains more than seeds differ, and none is a default."
    )


def render_finetuning() -> str:
    """The comparison with the plain recipe, in words."""
    timed = json.loads((Path(__file__).parent / "finetune.json").read_text())
    plain, ours = timed["plain"], timed["ours"]["runs"]
    low, high = (f"{pick(run['validation_accuracy'] for run in ours):.2%}" for pick in (min, max))
    short, long = (f"{pick(run['seconds'] for run in ours):.0f}" for pick in (min, max))
    command = " ".join(["finetune_vit.py", *timed["ours"]["flags"]])
    return (
        f"On {timed['max_train_samples']:,} training images, `{command}` takes {short} to {long} s to {low} to "
        f"{high} of "
        f"{timed['max_eval_samples']:,} validation images ({len(ours)} seeds, all included); the plain recipe "
        "(Trainer's "
        f"defaults: float32, 224 pixels, batches of 8) takes {plain['seconds']:.0f} s to "
        f"{plain['validation_accuracy']:.2%}. "
        f"The slowest needs {timed['share_of_time']:.2f} of its time (`benchmarks/finetune.py`, "
        f"{tell_machine(timed['machine'])})."
    )


def total_time(stages: list[dict]) -> str:
    """How long the stages of a row of backbones.json took, in words."""
    return card.total_time([(stage["train_seconds"], stage["machine"]["accelerator"]) for stage in stages])


def accuracy(row: dict) -> float:
    """The test accuracy of a row of backbones.json."""
    return row["test_accuracy"]


def render_scale() -> str:
    """What classifier.predict does on one and on two cores, and what that comes to on a hundred, as Markdown."""
    path = Path(__file__).parent / "scale.json"
    if not path.exists():
        return "Not measured yet: `benchmarks/scale.py` does."
    found = json.loads(path.read_text())
    lines = [
        "| images | model | one core | two cores, one process | two cores, two processes | start of a process |",
        "|---|---|---|---|---|---|",
    ]
    ways: dict[tuple[str, str], dict] = {}
    for row in found["rows"]:
        ways.setdefault((row["kind"], row["model"]), {})[row["cores"], row["processes"]] = row
    for (kind, model), way in ways.items():
        speeds = (f"{tell_spread(way[cores, n]['images_per_second'])}" for cores, n in ((1, 1), (2, 1), (2, 2)))
        lines.append(
            f"| {kind}, {found['kinds'][kind]['bytes_per_image'] / 1e3:.1f} kB | `models/{model}` | "
            f"{' | '.join(speeds)} "
            f"| {way[1, 1]['start_s']['median']:.0f} s |"
        )
    photographs, listed = found["kinds"]["photographs"], found["files_listed_per_second"]["median"]
    lines += [
        "",
        f"Images per second, medians and extremes of {found['rounds']} rounds of {found['images']:,} images, by "
        f"`benchmarks/scale.py` on {tell_machine(found['machine'])}. The photographs are copies of "
        f"{photographs['distinct']}, of {photographs['median_megapixels']:.1f} megapixels (median), in the page cache. "
        f"A process lists {listed:,.0f} names of a local folder per second.",
        "",
        f"{IMAGES / 1e6:.0f} million images on {MACHINES} such machines, {2 * MACHINES} processes:",
        "",
        "| images | model | hours | vCPU-hours | cost | read in all | a machine reads | shard | overhead |",
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
        f"Each process lists the names of all files. Of {IMAGES / 1e6:.0f} million single files, on a local disk, "
        f"that takes {IMAGES / listed / 60:.0f} minutes.",
    ]
    return "\n".join(lines)


def tell_spread(found: dict) -> str:
    """A median and its extremes."""
    return f"{found['median']:,.1f} ({found['min']:,.1f} to {found['max']:,.1f})"


def place(text: str, rendered: Callable[[], str] = render) -> str:
    """`text` with the results of today between the marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{rendered()}\n\n{END}{rest.split(END)[1]}"


PAGES = {"README.md": render, "docs/results.md": render_details, "docs/scale.md": render_scale}

if __name__ == "__main__":
    for name, rendered in PAGES.items():
        write_text(ROOT / name, place((ROOT / name).read_text(), rendered))
