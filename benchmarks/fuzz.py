"""Feeds damaged images of every format to the decoder and counts the outcomes.

    python -m benchmarks.fuzz --files 100000        # about 20 s per 10,000
    python -m benchmarks.fuzz --folder broken/      # the files of a collection, such as PngSuite

A worker that dies or has to be stopped is a finding. The app survives it, because a new worker is started, but the file
is kept in the folder --keep. Writes benchmarks/fuzz.json unless --folder is given.
"""

import argparse
import io
import json
import sys
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pillow_heif
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from classifier import runs
from classifier.errors import ImageError
from classifier.files import write_json
from classifier.images.limits import MAX_SIDE
from classifier.images.workers import Decoder

NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)  # where arithmetic overflows


def samples() -> dict[str, bytes]:
    """Small valid files by the name of their kind, from which damaged ones are made."""
    y, x = np.mgrid[0:37, 0:53]
    rgb = Image.fromarray(np.stack([x * 4, y * 6, (x * y) % 251], axis=-1).astype(np.uint8))
    rgba, grey = rgb.copy(), rgb.convert("L")
    rgba.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)], "duration": 50}
    kinds = {
        "JPEG": (rgb, "JPEG", {"exif": exif, "icc_profile": profile}),
        "JPEG progressive": (rgb, "JPEG", {"progressive": True}),
        "JPEG CMYK": (rgb.convert("CMYK"), "JPEG", {}),
        "JPEG grey": (grey, "JPEG", {}),
        "PNG": (rgb, "PNG", {"icc_profile": profile}),
        "PNG alpha": (rgba, "PNG", {}),
        "PNG palette": (rgb.convert("P"), "PNG", {}),
        "PNG 1 bit": (grey.convert("1"), "PNG", {}),
        "PNG 16 bit": (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG", {}),
        "PNG animated": (rgb, "PNG", frames),
        "WEBP": (rgb, "WEBP", {}),
        "WEBP lossless": (rgba, "WEBP", {"lossless": True}),
        "WEBP animated": (rgb, "WEBP", frames),
        "AVIF": (rgb, "AVIF", {}),
        "AVIF alpha": (rgba, "AVIF", {}),
        "GIF": (rgb.convert("P"), "GIF", {}),
        "GIF animated": (rgb, "GIF", frames),
        "BMP": (rgb, "BMP", {}),
        "BMP palette": (rgb.convert("P"), "BMP", {}),
        "TIFF": (rgb, "TIFF", {}),
        "TIFF LZW": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "TIFF deflate": (rgba, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "TIFF JPEG": (rgb, "TIFF", {"compression": "jpeg"}),
        "TIFF fax": (grey.convert("1"), "TIFF", {"compression": "group4"}),
        "TIFF float": (grey.convert("F"), "TIFF", {}),
    }
    found = {}
    for name, (image, format, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, format, **options)
        found[name] = file.getvalue()
    for name, image in (("HEIF", rgb), ("HEIF alpha", rgba)):
        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file)
        found[name] = file.getvalue()
    return found


SAMPLES = samples()


@st.composite
def damaged(draw) -> tuple[str, bytes]:
    """(kind, bytes) of a file with one to six defects: changed bits or numbers, missing, repeated or foreign parts."""
    kind = draw(st.sampled_from(sorted(SAMPLES)))
    data = bytearray(SAMPLES[kind])
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(["bit", "number", "random", "cut", "delete", "repeat", "splice"])):
            case "bit" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                size, order = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from(["big", "little"]))
                data[at : at + size] = (draw(st.sampled_from(NUMBERS)) % 256**size).to_bytes(size, order)
            case "random":
                data[at : at + length] = draw(st.binary(min_size=1, max_size=length))
            case "cut":
                del data[at:]
            case "delete":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length]
            case "splice":
                other = SAMPLES[draw(st.sampled_from(sorted(SAMPLES)))]
                data[at:] = other[min(at, len(other) - 1) :]
    return kind, bytes(data)


def outcome(decoder: Decoder, data: bytes | Path, reduce_to: int | None) -> str:
    """Decodes and returns 'image', 'refused', or a finding, 'died' or 'hung'. Other exceptions are not caught."""
    try:
        image = decoder.decode(data, reduce_to=reduce_to)
    except ImageError as error:
        return next((found for found, words in FINDINGS.items() if words in str(error)), "refused")
    assert image.mode == "RGB" and max(image.size) <= MAX_SIDE, (image.mode, image.size)
    return "image"


FINDINGS = {"died": "the decoder died", "hung": "took longer than"}


def main() -> None:
    """Decodes the files and counts the outcomes; the exit code is 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="damaged files to make (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--folder", type=Path, help="decode the files in it instead of making some")
    parser.add_argument(
        "--keep", type=Path, default=Path("runs/fuzz"), help="folder for the files of findings (%(default)s)"
    )
    args = parser.parse_args()
    counts, slowest, began = Counter(), 0.0, time.perf_counter()

    with Decoder() as decoder:

        def try_one(kind: str, data: bytes | Path) -> None:
            nonlocal slowest
            start = time.perf_counter()
            found = outcome(decoder, data, reduce_to=None if counts.total() % 2 else 64)
            slowest = max(slowest, time.perf_counter() - start)
            counts[found] += 1
            if found in FINDINGS:
                args.keep.mkdir(parents=True, exist_ok=True)
                data = data if isinstance(data, bytes) else data.read_bytes()
                path = args.keep / f"{found} {kind} {sha256(data).hexdigest()[:12]}"
                path.write_bytes(data)
                print(f"{kind}: {found}, kept as {path}", flush=True)

        if args.folder:
            for path in sorted(path for path in args.folder.rglob("*") if path.is_file()):
                try_one(path.name, path)
        else:
            limits = {"max_examples": args.files, "deadline": None, "database": None, "phases": [Phase.generate]}

            @seed(args.seed)
            @settings(**limits, suppress_health_check=list(HealthCheck))
            @given(damaged())
            def run(example: tuple[str, bytes]) -> None:
                try_one(*example)

            run()

    found = {
        "files": counts.total(),
        "outcomes": dict(sorted(counts.items())),
        "slowest_s": round(slowest, 2),
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(found))
    if not args.folder:
        kinds = {"kinds": sorted(SAMPLES), "seed": args.seed}
        write_json(Path(__file__).parent / "fuzz.json", found | kinds | {"machine": runs.machine()})
    sys.exit(1 if counts.keys() & FINDINGS.keys() else 0)


if __name__ == "__main__":
    main()
