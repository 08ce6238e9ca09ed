"""Pictures from files that nobody vouches for: refused in one sentence, before they have taken any memory."""

import io
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image, ImageFile

from vitcop.images import MAX_BYTES, MAX_PIXELS, ImageError, open_image


def png(width: int, height: int, rows: bytes = b"", depth: int = 1, color: int = 0) -> bytes:
    """A PNG that claims a size, with the rows that it is given."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def refusal(path: Path) -> str:
    """The sentence, without the folder of the test; it must not take memory for the pixels to come to it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError) as caught:
        open_image(path)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert taken < 2**16, f"{taken} KiB"
    said = str(caught.value)
    assert "\n" not in said and str(path) in said
    return said.replace(f"{path.parent}/", "")


def test_a_small_file_that_claims_billions_of_pixels(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000))
    assert path.stat().st_size < 100
    assert refusal(path) == "bomb.png has more than the 80 million pixels allowed"


def test_a_real_bomb_of_which_pillow_would_only_warn(tmp_path: Path) -> None:
    """150 million pixels in 20 kB, each of them there: Pillow decodes it, with a warning that nobody has to see."""
    width, height = 15_000, 10_000
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height, bytes(height * (1 + width // 8))))
    assert path.stat().st_size < 30_000
    with pytest.warns(Image.DecompressionBombWarning), Image.open(path) as image:
        assert image.size == (width, height) and image.getpixel((width - 1, height - 1)) == 0
    assert refusal(path) == "bomb.png has 15000 x 10000 pixels, more than the 80 million allowed"


def test_the_bound_is_below_pillows() -> None:
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("side", [1, 0])
def test_the_bound_itself(tmp_path: Path, side: int) -> None:
    """The largest picture is decoded (as one bit, it takes no memory to speak of before that), one row more is not."""
    width, height = 8_000, MAX_PIXELS // 8_000 + side
    path = tmp_path / "large.png"
    path.write_bytes(png(width, height, bytes(height * (1 + width // 8))))
    if side:
        assert refusal(path) == f"large.png has {width} x {height} pixels, more than the 80 million allowed"
    else:
        assert open_image(path).size == (width, height)


def test_a_limit_of_pillow_that_was_lifted_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000))
    assert refusal(path) == "bomb.png has 60000 x 60000 pixels, more than the 80 million allowed"


@pytest.mark.parametrize("kind", ["tiff", "bmp", "ppm", "gif", "webp"])
def test_other_formats_that_claim_too_much(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"bomb.{kind}"
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, kind)
    data = bytearray(small.getvalue())
    if kind == "bmp":
        data[18:26] = struct.pack("<ii", 50_000, 50_000)
    elif kind == "ppm":
        data = bytearray(b"P6 50000 50000 255\n")
    elif kind == "gif":
        data[6:10] = struct.pack("<HH", 50_000, 50_000)
    elif kind == "tiff":
        for tag in (256, 257):  # width, height; Pillow writes little-endian entries of 12 bytes
            at = data.index(struct.pack("<HHII", tag, 4, 1, 8))
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 50_000)
    else:
        data = bytearray(b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + 2 * (16_383).to_bytes(3, "little") + bytes(8))
    path.write_bytes(bytes(data))
    said = refusal(path)
    assert "more than the 80 million" in said or kind == "webp"  # a WebP without its pixels is no WebP


def test_a_file_of_too_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "large.ppm"
    with path.open("wb") as file:
        file.write(b"P6 100 100 255\n")
        file.truncate(MAX_BYTES + 1)  # sparse: it takes no disk
    assert refusal(path) == f"large.ppm has {MAX_BYTES + 1} bytes, more than the {MAX_BYTES} allowed"


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_frames_and_pages(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"film.{kind}"
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert refusal(path) == f"film.{kind} has several frames or pages, expected one picture"


def test_the_first_picture_of_a_camera_with_several(tmp_path: Path) -> None:
    path = tmp_path / "photograph.jpg"
    Image.new("RGB", (8, 8), "red").save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")])
    assert open_image(path).size == (8, 8)


def deep(mode: str) -> Callable[[Path], None]:
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    return lambda path: Image.fromarray(np.full((8, 8), 40_000, dtype)).save(path)


@pytest.mark.parametrize(("mode", "name"), [("I;16", "deep.png"), ("I", "deep.tiff"), ("F", "deep.tiff")])
def test_more_than_eight_bits(tmp_path: Path, mode: str, name: str) -> None:
    """Pillow cuts them off at 255, and hands out a white picture."""
    deep(mode)(tmp_path / name)
    assert refusal(tmp_path / name) == f"{name} has pixels of the kind {mode}, expected up to 8 bits per channel"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_that_are_taken(tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"picture.{'tiff' if mode in ('CMYK', 'YCbCr') else 'png'}"
    Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode).save(path)
    image = open_image(path)
    assert (image.mode, image.size, image.getpixel((3, 3))) == ("RGB", (8, 6), (255, 255, 255))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "tiff", "bmp", "ppm"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("lenient", [False, True])
def test_files_that_end_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lenient: bool, kind: str, share: float
) -> None:
    """Also where another library has told Pillow, for the whole process, to put up with them."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, kind)
    path = tmp_path / f"half.{kind}"
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    said = refusal(path)
    assert said.startswith(f"half.{kind} cannot be decoded (") or "is not an image in a supported format" in said
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_raise_nothing_else(tmp_path: Path, seed: int) -> None:
    """Any bytes changed anywhere: a picture, or the one error."""
    chance = np.random.default_rng(seed)
    refused = 0
    for kind in ("jpeg", "png", "webp", "gif", "tiff", "bmp", "ppm"):
        whole = io.BytesIO()
        Image.fromarray(chance.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(whole, kind)
        for _ in range(12):
            data = bytearray(whole.getvalue())
            for place in chance.integers(0, min(len(data), 200), 4):
                data[place] = chance.integers(0, 256)
            try:
                assert open_image(io.BytesIO(bytes(data))).mode == "RGB"
            except ImageError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 10


def test_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.png") == "No such file: absent.png"
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path / "folder") == "folder is a folder"
