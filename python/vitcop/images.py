"""Image loading with size limits, checked before anything is decoded."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000
"""Below the number from which Pillow warns of a decompression bomb: what it would only warn of is refused here."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
"""Up to 8 bits per channel: others would be cut off, and come out white."""


class ImageError(ValueError):
    """A picture that cannot be used, in one sentence that names it."""


def open_image(source: str | Path | BinaryIO) -> Any:
    """A picture as a PIL image in RGB, turned upright, from a path or a binary file.

    Raises:
        ImageError: no file, not one of `FORMATS`, damaged or cut off, several frames or pages, more than `MAX_BYTES` or
            `MAX_PIXELS` (a size that the file only claims counts), more than 8 bits per channel.
    """
    if not isinstance(source, str | Path):
        return _decode(source, "the picture")
    path = expanded(source)
    if not path.is_file():
        raise ImageError(f"{path} is a folder" if path.is_dir() else f"No such file: {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ImageError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_BYTES} allowed")
    return _decode(path, str(path))


def expanded(path: str | Path) -> Path:
    """With the home directory for `~`; a name that only looks so stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~name of nobody, as Office calls its lock files
        return Path(path)


def _decode(source: Path | BinaryIO, name: str) -> Any:
    from PIL import Image, ImageOps

    try:
        with _whole(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below, or decoded all the same
            with Image.open(source, formats=FORMATS) as image:
                _check(image, name)
                image.load()
                return ImageOps.exif_transpose(image).convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has more than the {MAX_PIXELS // 10**6} million pixels allowed") from None
    except PermissionError:
        raise ImageError(f"{name} may not be read (permission denied)") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name} is not an image in a supported format ({', '.join(FORMATS)})") from None
    except Exception as error:  # damaged files raise whatever their decoder stumbles over
        said = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ImageError(f"{name} cannot be decoded ({said or type(error).__name__})") from None


_SETTING = threading.Lock()


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Turn off `LOAD_TRUNCATED_IMAGES`, which other libraries may have set for the whole process."""
    from PIL import ImageFile

    with _SETTING:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _check(image: Any, name: str) -> None:
    """Refuse what a file says of itself, before its pixels take any memory."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        allowed = f"{MAX_PIXELS // 10**6} million allowed"
        raise ImageError(f"{name} has {width} x {height} pixels, more than the {allowed}")
    if image.mode not in MODES:
        raise ImageError(f"{name} has pixels of the kind {image.mode}, expected up to 8 bits per channel")
    # Cameras put previews and depth maps behind the photograph (MPO); its first frame is the photograph.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(f"{name} has several frames or pages, expected one picture")
