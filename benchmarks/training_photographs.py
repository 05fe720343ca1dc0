"""Sorts public sets of photographs into the folder that `finetune_vit.py --photographs` takes, for CIFAR-10.

    python -m benchmarks.training_photographs --caltech101 101_ObjectCategories --pets images --output_dir photographs

Caltech-101 (Li, Andreeto, Ranzato and Perona, doi:10.22002/D1.20086, CC BY 4.0) has objects of 101 kinds, of which some
are CIFAR-10's classes; the others become `none`, less those that are open to argument. The Oxford-IIIT Pet Dataset
(Parkhi, Vedaldi, Zisserman and Jawahar, CC BY-SA 4.0), all of it or a part, has dogs and cats: its files of cats begin
with a capital. Files are copied, each picture once: of two copies, one could be trained on and the other held out.
"""

import argparse
import hashlib
import shutil
from collections import Counter
from pathlib import Path

from classifier.errors import DataError, run
from classifier.evaluation.photographs import NONE
from classifier.files import write_text
from classifier.training.photographs import SOURCES

SOURCES_TEXT = (
    "Caltech-101 (Li, Andreeto, Ranzato and Perona, doi:10.22002/D1.20086, CC BY 4.0) and the Oxford-IIIT Pet Dataset "
    "(Parkhi, Vedaldi, Zisserman and Jawahar, CC BY-SA 4.0)"
)
LABEL_OF = {
    "airplanes": "airplane",
    "car_side": "automobile",
    **dict.fromkeys(["emu", "flamingo", "flamingo_head", "ibis", "pigeon", "rooster"], "bird"),
    "dalmatian": "dog",
    **dict.fromkeys(["ferry", "ketch", "schooner"], "ship"),
}
# Mixed pictures, drawings of cats and dogs, wild cats, an antelope, an aircraft, and faces that are there twice.
LEFT_OUT = {"BACKGROUND_Google", "Faces", "Leopards", "cougar_body", "cougar_face", "garfield", "gerenuk"}
LEFT_OUT |= {"helicopter", "snoopy", "wild_cat"}


def main() -> None:
    """Copies every photograph into the folder of its label."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caltech101", type=Path, required=True, help="folder with a folder for each kind")
    parser.add_argument("--pets", type=Path, nargs="+", required=True, help="folders of files such as Abyssinian_1.jpg")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to make")
    args = parser.parse_args()
    labels = {}
    for path in args.caltech101.glob("*/*.jpg"):
        if path.parent.name not in LEFT_OUT:
            labels[path] = LABEL_OF.get(path.parent.name, NONE)
    for folder in args.pets:
        labels |= {path: "cat" if path.name[0].isupper() else "dog" for path in folder.glob("*.jpg")}
    if set(labels.values()) != {*LABEL_OF.values(), "cat", NONE}:
        raise DataError("photographs of some label are missing: check the folders of --caltech101 and --pets")
    copies = {hashlib.sha256(path.read_bytes()).digest(): path for path in labels}
    labels = {path: labels[path] for path in copies.values()}
    for path, label in labels.items():
        target = args.output_dir / label / f"{path.parent.name}_{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    write_text(args.output_dir / SOURCES, SOURCES_TEXT)
    print(", ".join(f"{n:,} {label}" for label, n in sorted(Counter(labels.values()).items())), "in", args.output_dir)


if __name__ == "__main__":
    run(main)
