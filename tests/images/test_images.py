"""The image decoder, with real worker processes and files that the tests create."""

import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from classifier.data.loaders import decode_cell
from classifier.errors import ImageError
from classifier.images.convert import to_rgb
from classifier.images.limits import MAX_ASPECT, MAX_BYTES
from classifier.images.workers import LOOK_AHEAD, WORKERS, Decoder, decode
from tests.helpers.paths import ROOT
from tests.helpers.pictures import LFS_POINTER

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


@pytest.fixture
def decoder():
    with Decoder() as decoder:
        yield decoder


def saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def scene(height: int = 300, width: int = 400) -> Image.Image:
    """A smooth picture with some noise, which every format has to compress."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 30 + y / 50), np.cos(x / 40), np.sin(y / 25)], axis=-1)  # (H, W, 3), range (-1, 1)
    noise = np.random.default_rng(0).normal(0, 4, waves.shape)
    return Image.fromarray((128 + 100 * waves + noise).clip(0, 255).astype(np.uint8))


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference, in 8-bit levels."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a, dtype=np.int16) - np.asarray(b, dtype=np.int16)).mean())


def worker_pids() -> list[int]:
    """Decode workers that this process has as children."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while we look
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"classifier.images.workers" in (folder / "cmdline").read_bytes():
                pids.append(int(folder.name))
    return pids


# Pixels


# A picture of two by two blocks that stands as below once upright: what each EXIF orientation stores of it, worked by
# hand from the standard ("the 0th row is at the visual ..., the 0th column at the visual ...").
#     red    green
#     blue   yellow
STORED = {
    1: [[RED, GREEN], [BLUE, YELLOW]],  # row 0 top, column 0 left
    2: [[GREEN, RED], [YELLOW, BLUE]],  # top, right
    3: [[YELLOW, BLUE], [GREEN, RED]],  # bottom, right
    4: [[BLUE, YELLOW], [RED, GREEN]],  # bottom, left
    5: [[RED, BLUE], [GREEN, YELLOW]],  # left, top
    6: [[GREEN, YELLOW], [RED, BLUE]],  # right, top
    7: [[YELLOW, GREEN], [BLUE, RED]],  # right, bottom
    8: [[BLUE, RED], [YELLOW, GREEN]],  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation, format):
    blocks = np.array(STORED[orientation], dtype=np.uint8)
    wide = orientation < 5  # the upright picture is 48 wide and 32 high
    stored = Image.fromarray(blocks.repeat(16 if wide else 24, axis=0).repeat(24 if wide else 16, axis=1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, format, exif=exif, **({"quality": 100} if format in ("JPEG", "WEBP") else {}))
    for image in (decode(data), decode(data, reduce_to=16), to_rgb(Image.open(io.BytesIO(data)))):
        width, height = image.size
        assert width * 2 == height * 3
        corners = np.asarray(image)[[3, 3, -4, -4], [3, -4, 3, -4]].reshape(2, 2, 3)
        assert np.abs(corners - np.array(STORED[1], dtype=float)).max() < 40
        assert to_rgb(image).tobytes() == image.tobytes()  # not turned a second time


def test_damaged_exif_leaves_the_image_as_it_stands():
    data = saved(Image.new("RGB", (8, 4), RED), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\xff garbage")
    assert decode(data).getpixel((0, 0)) == RED


def test_lossless_rgb_keeps_every_bit(tmp_path):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    path = tmp_path / "cifar.png"
    image.save(path)
    for decoded in (
        decode(path),
        decode(str(path)),
        decode(path.read_bytes()),
        decode(path, reduce_to=32),
        to_rgb(Image.open(path)),
    ):
        assert decoded.mode == "RGB"
        assert decoded.tobytes() == image.tobytes()
    for format, options in [("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {"compression": "tiff_lzw"})]:
        assert decode(saved(image, format, **options)).tobytes() == image.tobytes()


def test_alpha_goes_over_white():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 1), 1)
    assert decode(saved(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(saved(palette, "PNG", transparency=0)).getpixel((1, 1)) == GREEN
    assert decode(saved(palette, "PNG", transparency=bytes([255, 0]))).getpixel((1, 1)) == (255, 255, 255)
    assert decode(saved(Image.new("RGBA", (4, 4), (0, 0, 0, 51)), "PNG")).getpixel((0, 0)) == (204, 204, 204)
    assert decode(saved(Image.new("LA", (4, 4), (0, 51)), "PNG")).getpixel((0, 0)) == (204, 204, 204)
    assert decode(saved(Image.new("RGB", (4, 4), RED), "PNG", transparency=RED)).getpixel((0, 0)) == (255,) * 3
    # Transparent pixels have a colour too (black here), which must not bleed in when the picture is shrunk.
    half = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 32, 64))
    assert decode(saved(half, "PNG"), reduce_to=8).getchannel("R").getextrema()[0] >= 250


def test_grey_one_bit_sixteen_bit_and_float():
    assert decode(saved(Image.new("L", (4, 4), 77), "PNG")).getpixel((0, 0)) == (77, 77, 77)
    assert decode(saved(Image.new("1", (4, 4), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    ramp = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        assert np.asarray(decode(saved(Image.fromarray(ramp), format)))[0, :, 1].tolist() == [0, 1, 128, 255]
    for values, expected in [
        (np.array([[0, 0.5, 1, np.nan]], dtype=np.float32), [0, 128, 255, 0]),
        (np.array([[0, 100, 254.6, -3]], dtype=np.float32), [0, 100, 255, 0]),
        (np.array([[0, 100, 255, 1]], dtype=np.int32), [0, 100, 255, 1]),
        (np.array([[0, 65535, 257, 514]], dtype=np.int32), [0, 255, 1, 2]),
        (np.array([[0, 2_000_000, 500_000, 0]], dtype=np.int32), [0, 255, 64, 0]),
        (np.zeros((1, 4), dtype=np.float32), [0, 0, 0, 0]),
    ]:
        image = Image.fromarray(values)
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == expected
        assert decode(saved(image, "TIFF")).tobytes() == to_rgb(image).tobytes()


def test_cmyk_jpeg():
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (0, 255, 255, 0)])  # magenta + yellow: red
    red = np.asarray(decode(saved(cmyk, "JPEG", quality=95)))[8, 8]
    assert np.abs(red - np.array(RED, dtype=float)).max() <= 3


def swapped_profile() -> bytes:
    """sRGB's profile with the red and green primaries exchanged: what it calls red is sRGB's green."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    entries = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_icc_profile_becomes_srgb(format):
    image = Image.new("RGB", (32, 32), (200, 10, 10))
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(image, format, icc_profile=swapped_profile(), **options)
    for decoded in (decode(data), decode(data, reduce_to=8)):
        assert np.abs(np.asarray(decoded)[4, 4] - np.array([10.0, 200.0, 10.0])).max() <= 4
        assert "icc_profile" not in decoded.info
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert difference(decode(saved(image, format, icc_profile=srgb, **options)), image) <= 1


def test_damaged_and_unfitting_profiles_are_ignored():
    image = Image.new("RGB", (8, 8), (200, 10, 10))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"no profile at all", swapped_profile()[:300], lab):
        assert decode(saved(image, "PNG", icc_profile=profile)).getpixel((0, 0)) == (200, 10, 10)


def test_lab_tiff():
    lab = Image.merge("LAB", [Image.new("L", (8, 8), value) for value in (255, 128, 128)])  # L* 100, a* 0, b* 0: white
    assert min(decode(saved(lab, "TIFF")).getpixel((0, 0))) >= 250


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert decode(data).getpixel((8, 8)) == RED


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF", "HEIF", "TIFF"])
def test_round_trip(format, tmp_path):
    image = scene()
    path = tmp_path / "name.without_meaning"
    if format == "HEIF":
        pillow_heif.from_pillow(image).save(path, quality=95)
    else:
        image.save(path, format, **({} if format == "TIFF" else {"quality": 95}))
    assert difference(decode(path), image) < 4
    assert difference(decode(path, reduce_to=64), image.resize((85, 64), Image.Resampling.LANCZOS)) < 2


def test_heic_orientation_is_applied_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # its left edge is the top
    image = Image.new("RGB", (64, 32), BLUE)
    image.paste(RED, (0, 0, 32, 32))
    heif = pillow_heif.from_pillow(image)
    heif[0].info["exif"] = exif.tobytes()
    heif.save(tmp_path / "a.heic", quality=95)
    decoded = decode(tmp_path / "a.heic")
    assert decoded.size == (32, 64)
    assert decoded.getpixel((16, 5))[0] > 200


def test_scaled_decode_is_close_to_full_decode_and_resize():
    image = scene(1500, 2001)
    data = saved(image, "JPEG", quality=92)
    scaled = decode(data, reduce_to=64)
    assert scaled.size == (85, 64)
    full = decode(data)
    assert full.size == image.size
    assert difference(scaled, full.resize((85, 64), Image.Resampling.LANCZOS)) < 1
    assert difference(to_rgb(image, reduce_to=64), image.resize((85, 64), Image.Resampling.LANCZOS)) < 1
    assert decode(saved(image, "PNG", compress_level=1), reduce_to=5000).tobytes() == image.tobytes()


# Refusals


def refusal(source, **options) -> str:
    with pytest.raises(ImageError) as caught:
        decode(source, **options)
    return str(caught.value)


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\1\0IDAT"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "empty.png: empty"),
        ("text.jpg", b"hello, I am no picture", "text.jpg: not an image of a known type"),
        (
            "drawing.eps",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "drawing.eps: not an image of a known type",
        ),
        ("drawing.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "drawing.jpg: not an image of a known type"),
        ("paper.png", b"%PDF-1.7\n1 0 obj\n", "paper.png: not an image of a known type"),
        ("drawing.xpm", b"/* XPM */\n", "drawing.xpm: not an image of a known type"),
        ("pointer.jpg", LFS_POINTER.encode(), "pointer.jpg: this is a Git LFS pointer in place of the file"),
        ("head.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "head.jpg: "),
        ("wide.png", png_header(20_001, 1), "wide.png: 20,001 × 1 pixels; at most 20,000 a side"),
        ("bomb.png", png_header(60_000, 60_000), "bomb.png: more than 120 megapixels"),
        ("bomb2.png", png_header(12_001, 10_000), "bomb2.png: more than 120 megapixels"),
    ],
)
def test_refused_with_name_and_reason(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    start = time.monotonic()
    message = refusal(tmp_path / name)
    assert message.startswith(reason)
    assert str(tmp_path) not in message
    assert time.monotonic() - start < 5  # most of it a worker's start


@pytest.mark.parametrize("format", ["PPM", "JPEG2000", "PNG", "JPEG"])
@pytest.mark.parametrize("size", [(40, 30), (1600, 64), (3, 600)])
def test_what_is_trained_on_is_decoded_the_same_for_predictions(format, size, tmp_path):
    path = tmp_path / "a.img"
    scene(*size).save(path, format)
    image, trained_on = decode(path), decode_cell({"path": str(path), "bytes": None})
    assert image.tobytes() == trained_on.tobytes() and image.size == trained_on.size
    assert max(image.size) == min(max(size), MAX_ASPECT * min(size)) and min(image.size) == min(size)
    assert decode(path, reduce_to=2).size[size[0] < size[1]] <= 2 * MAX_ASPECT


@pytest.mark.parametrize(
    "content",
    [png_header(20_001, 1), png_header(12_001, 10_000), bytes(MAX_BYTES + 1), b"", LFS_POINTER.encode()],
    ids=["side", "megapixels", "bytes", "empty", "Git LFS pointer"],
)
def test_what_is_refused_for_predictions_is_not_trained_on(content):
    reason = str(decode_cell({"path": None, "bytes": content}))
    assert refusal(content).endswith(reason)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "HEIF", "PPM", "JPEG2000"])
def test_truncated_files_are_refused(format, tmp_path):
    path = tmp_path / "cut.img"
    if format == "HEIF":
        pillow_heif.from_pillow(scene()).save(path)
    else:
        scene().save(path, format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for reduce_to in (None, 64):
        message = refusal(path, reduce_to=reduce_to)
        assert message.startswith("cut.img: ")
        assert "died" not in message  # the decoder refuses the file; it does not crash
        assert str(tmp_path) not in message


def test_files_that_are_not_there_or_no_files(tmp_path):
    assert refusal(tmp_path / "none.png") == "none.png: No such file or directory"
    assert refusal(tmp_path) == f"{tmp_path.name}: not a file"
    os.mkfifo(tmp_path / "pipe.png")  # would block its reader
    assert refusal(tmp_path / "pipe.png") == "pipe.png: not a file"
    assert refusal(b"") == "image of 0 bytes: empty"
    assert "null" in refusal("a\0.png")


def test_too_many_bytes(tmp_path):
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert refusal(path) == "big.png: 30.0 MB; at most 30 MB"
    assert refusal(bytes(MAX_BYTES + 1)).startswith("image of 30,000,001 bytes: 30.0 MB")


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept on Linux alone")
def test_memory_limit():
    data = saved(Image.new("L", (10_000, 9_000)), "PNG", compress_level=1)
    with Decoder(workers=1, memory=400 << 20) as decoder:
        decoder.decode(saved(scene(), "PNG"))
        before = worker_pids()
        with pytest.raises(ImageError, match="needs more memory"):
            decoder.decode(data)
        assert decoder.decode(data, reduce_to=64).size == (71, 64)  # grey, shrunk first: 90 MB
        assert set(before) <= set(worker_pids())  # the worker reported the error and still runs


# Workers


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_hangs_is_replaced(tmp_path):
    scene().save(tmp_path / "good.png")
    others = set(worker_pids())
    with Decoder(workers=1, time_limit_s=1.0) as decoder:
        decoder.decode(tmp_path / "good.png")
        (pid,) = set(worker_pids()) - others
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(ImageError, match=r"^good\.png: took longer than 1 s$"):
            decoder.decode(tmp_path / "good.png")
        assert 0.9 < time.monotonic() - start < 5
        assert decoder.decode(tmp_path / "good.png").size == (400, 300)
        (new,) = set(worker_pids()) - others
        assert new != pid
        # Bytes beyond what a pipe holds: the parent hangs in writing, not in reading.
        os.kill(new, signal.SIGSTOP)
        with pytest.raises(ImageError, match="took longer"):
            decoder.decode(bytes(1_000_000))
        assert decoder.decode(tmp_path / "good.png").size == (400, 300)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_is_killed_is_replaced_and_the_rest_go_on(decoder, tmp_path):
    others, path = set(worker_pids()), tmp_path / "a.png"
    scene().save(path)
    while len(ours := set(worker_pids()) - others) < 2:
        list(decoder.decode_many([path] * 8))
    for pid in ours:
        os.kill(pid, signal.SIGSTOP)  # so that both are surely in the middle of something
    results = []
    thread = threading.Thread(target=lambda: results.extend(decoder.decode_many([path] * 20)))
    thread.start()
    while decoder._idle.qsize():
        time.sleep(0.01)
    time.sleep(0.2)
    for pid in ours:
        os.kill(pid, signal.SIGKILL)
    thread.join()
    assert [str(result) for result in results[:2]] == ["a.png: the decoder died (exit status -9)"] * 2
    assert [result.size for result in results[2:]] == [(400, 300)] * 18
    # A worker killed while idle is replaced without an error for any file.
    for pid in set(worker_pids()) - others:
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
    assert [result.size for result in decoder.decode_many([path] * 4)] == [(400, 300)] * 4


def test_order_is_kept_with_bad_files_in_the_middle(decoder, tmp_path):
    sources = []
    for index in range(30):
        path = tmp_path / f"{index}.png"
        path.write_bytes(
            b"bad" if index % 7 == 3 else saved(Image.new("RGB", (100 * (index % 5 + 1), 50), (index, 0, 0)), "PNG")
        )
        sources.append(path)
    for index, result in enumerate(decoder.decode_many(sources, reduce_to=10)):
        if index % 7 == 3:
            assert isinstance(result, ImageError)
            assert str(result).startswith(f"{index}.png: ")
        else:
            assert result.size == (20 * (index % 5 + 1), 10)
            assert result.getpixel((0, 0)) == (index, 0, 0)
    assert index == 29
    assert list(decoder.decode_many([])) == []


def test_decode_many_streams(decoder):
    data, taken = saved(scene(30, 40), "PNG"), []

    def endless():
        while True:
            taken.append(1)
            yield data

    images = decoder.decode_many(endless())
    for count in range(1, 11):
        next(images)
        assert len(taken) <= count + LOOK_AHEAD * WORKERS
    images.close()


def test_many_threads_at_once(decoder, tmp_path):
    def one(index: int) -> None:
        image = Image.new("RGB", (64, 64), (index, 255 - index, 7))
        source = saved(image, "PNG")
        if index % 2:
            path = tmp_path / f"{index}.png"
            path.write_bytes(source)
            source = path
        assert decoder.decode(source).tobytes() == image.tobytes()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, range(200)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_close_stops_the_workers_and_a_later_decode_starts_them():
    others = set(worker_pids())
    decoder = Decoder()
    assert set(worker_pids()) == others  # none before the first image
    list(decoder.decode_many([saved(scene(), "PNG")] * 4))
    assert 1 <= len(set(worker_pids()) - others) <= 2
    decoder.close()
    assert set(worker_pids()) == others
    assert decoder.decode(saved(scene(), "PNG")).size == (400, 300)
    decoder.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_worker_loads_pillow_and_numpy_but_no_torch(decoder):
    others = set(worker_pids())
    decoder.decode(saved(scene(), "PNG"))
    (pid,) = set(worker_pids()) - others
    loaded = Path(f"/proc/{pid}/maps").read_text()
    assert "/PIL/" in loaded
    assert "torch" not in loaded
    probe = "import classifier.images.workers, pillow_heif, sys; print(*{name.split('.')[0] for name in sys.modules})"
    output = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installed = {name for name in output.split() if name.startswith("__editable__")}  # what `pip install -e .` adds
    assert set(output.split()) - set(sys.stdlib_module_names) - installed - {"__main__", "_distutils_hack"} <= {
        "PIL", "numpy", "pillow_heif", "_pillow_heif", "classifier", "defusedxml", "olefile", "typing_extensions",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(end, tmp_path):
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    # A script without a __main__ guard, started elsewhere: a worker must not run it again.
    script = tmp_path / "caller.py"
    script.write_text(
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it otherwise
        "from classifier.images import workers\n"
        "print(workers.decode('a.png').size, workers._shared._idle.queue[-1].process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as caller:
        line = caller.stdout.readline()
        assert line.startswith("(400, 300) ")
        pid = int(line.split()[-1])
        assert Path(f"/proc/{pid}").exists()
        caller.send_signal(end)
        assert caller.stdout.read() == ""  # once, not twice
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and b"classifier.images.workers" in Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.02)


def test_a_forked_child_has_workers_of_its_own():
    data = saved(scene(), "PNG")
    decode(data)
    script = (
        "import os, sys, io; from PIL import Image; from classifier.images import workers\n"
        "b = io.BytesIO(); Image.new('RGB', (9, 9), (1, 2, 3)).save(b, 'PNG'); data = b.getvalue()\n"
        "workers.decode(data); mine = workers._shared._idle.queue[-1].process.pid; child = os.fork()\n"
        "assert workers.decode(data).getpixel((0, 0)) == (1, 2, 3)\n"
        "same = workers._shared._idle.queue[-1].process.pid == mine\n"
        "workers._shared.close()\n"
        "if child == 0: os._exit(same)\n"
        "assert same and os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
