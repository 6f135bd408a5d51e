"""Reads image files: any file → RGB → the look of compressed video, which the model was trained on → fitted pixels.

It handles single pictures; conditioning.py places a picture in time.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from ..errors import InputError, no_such_file
from ..models import V23

PRESET = "veryfast"
MAX_PIXELS = 80_000_000  # less than the number at which Pillow warns of a decompression bomb
MAX_SIDE = 16_384  # the limit of H.264
NO_PICTURE = "is no picture."
ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")  # further pictures of other formats are pages, layers and sizes
# EPS and WMF are left out, because Pillow starts other programs for them.
FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JPEG2000", "GIF", "BMP", "DIB", "TIFF", "TGA", "PPM", "ICO", "PSD",
)  # fmt: skip
# Formats that not every Pillow reads: the marks in the first box of a file, their usual name, and what reads them.
BRANDS = {
    "AVIF": ((b"avif", b"avis"), "AVIF", "Pillow 11.3 or newer"),
    "HEIF": ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC", "pillow-heif"),
}


def load_image(path: str | Path) -> Tensor:
    """Image file → uint8 [H, W, 3], upright and in sRGB. An animation gives its first frame.

    Transparent parts become black, as a video player shows an empty area; the hidden colours under them are arbitrary.
    Raises InputError if the file is missing, too large or not readable.
    """
    path = Path(path)
    name = path.name or str(path)
    if path.is_dir():
        raise InputError(f"{name}: is a folder; name one image in it.")
    if not path.is_file():
        raise no_such_file(name)
    otherwise = "cannot be read as an image; it is damaged or has another format: save it as PNG or JPEG."
    with open_image(path, name, otherwise) as image:
        return torch.from_numpy(_to_rgb(image, name))


@contextmanager
def open_image(path: Path, name: str, otherwise: str) -> Iterator[Image.Image]:
    """Opens a picture within the limits of size, by its header: the body of the `with` may read its pixels.

    name: the file or field, for messages. otherwise: the message about a file that is no picture. Raises InputError.
    """
    try:
        with Image.open(path, formats=_readers()) as image:
            check_size(name, *image.size)
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(name, "far larger")) from error
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        raise InputError(_missing_reader(name, path) or f"{name}: {otherwise}") from error


def _readers() -> list[str]:
    """Pillow's names of the formats that are read here: its own, and HEIF if pillow-heif is installed."""
    Image.init()
    if "HEIF" not in Image.OPEN:
        with suppress(Exception):  # it is missing or broken
            from pillow_heif import register_heif_opener

            register_heif_opener(thumbnails=False)
    return [known for known in FORMATS if known in Image.OPEN]


def _missing_reader(name: str, path: Path) -> str:
    """The sentence for a file in a format that nothing installed reads, which names what does; else "". name: the file
    or field."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] != b"ftyp":
        return ""
    marks = {head[8:12], *(head[at : at + 4] for at in range(16, min(len(head), int.from_bytes(head[:4], "big")), 4))}
    for known, (brands, kind, reader) in BRANDS.items():
        if marks.intersection(brands):
            missing = f"{name}: is {kind}, which needs {reader}; install that, or save it as PNG or JPEG."
            return "" if known in Image.OPEN else missing
    return ""


def check_size(name: str, width: int, height: int) -> None:
    """Whether a picture of that size is read; its pixels need not be there yet. Errors: InputError."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(_too_large(name, f"{width}x{height}"))


def _too_large(name: str, size: str) -> str:
    """What is said of a picture of such a size."""
    limit = f"{MAX_PIXELS // 10**6} megapixels and {MAX_SIDE} pixels a side"
    return f"{name}: is {size}; at most {limit} are read: scale it down."


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Opened image → uint8 [H, W, 3]. Raises InputError if its pixels are floats."""
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise InputError(f"{name}: has float pixels without a known white; save it as 8- or 16-bit PNG.")
    if image.mode.startswith("I"):
        image = _to_eight_bits(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")  # grey stays grey for its profile
        alpha = image.getchannel("A")
        image = image.getchannel("L") if image.mode == "LA" else image
    colours = image if image.mode in ("L", "CMYK", "RGB") else image.convert("RGB")
    rgb = _to_srgb(colours, profile)
    if alpha is not None:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size), alpha)
    return np.array(rgb)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey → the same in 8 bits, scaled; Pillow's own conversion would clip it. A value that is transparent
    stays so."""
    values, clear = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray((values.clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """L, RGB or CMYK with an ICC profile → RGB in sRGB. A profile that is broken or of another kind is ignored."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB")


def from_float(image: Tensor) -> Tensor:
    """ComfyUI's image, float [H, W, 1 to 4] in 0..1 or bytes → uint8 [H, W, 3]. One or two channels are grey; the
    second or fourth is the opacity. Transparent parts become black, as in load_image.

    Raises InputError if the shape is another one or a value is NaN or infinite.
    """
    if image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4) or not image.numel():
        raise InputError(f"image: its shape is {tuple(image.shape)}; [height, width, 3] is needed.")
    return flat(image).mul(255).round().to("cpu", torch.uint8)


def flat(images: Tensor) -> Tensor:
    """ComfyUI's images [..., H, W, 1 to 4] → float32 [..., H, W, 3] in 0..1, without their transparency: it is black.

    Raises InputError if they are neither floats nor bytes, or a value is NaN or infinite.
    """
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise InputError(f"image: its pixels are {images.dtype}; floats from 0 to 1 are needed.")
    pixels = images.float().div(255) if images.dtype == torch.uint8 else images.float()
    if not torch.isfinite(pixels).all():
        raise InputError("image: has NaN or infinite values; check the node that it comes from.")
    pixels = pixels.clamp(0, 1)
    if pixels.shape[-1] in (2, 4):
        pixels = pixels[..., :-1] * pixels[..., -1:]
    return pixels.expand(*pixels.shape[:-1], 3)


def compress(image: Tensor, crf: int = V23.crf) -> Tensor:
    """uint8 [H, W, 3] → the same picture after H.264 compression, cropped to even sides. With crf 0 it is unchanged.

    The model was trained on frames of compressed video; a cleaner first frame freezes the motion. Raises InputError if
    the image is too large.
    """
    if crf == 0:
        return image
    # A side of one pixel cannot be cropped to an even size, so it is doubled.
    pixels = np.ascontiguousarray(image.repeat(*(2 if side == 1 else 1 for side in image.shape[:2]), 1).numpy())
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    if max(height, width) > MAX_SIDE:
        raise InputError(_too_large("image", f"{width}x{height}"))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": PRESET})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        return torch.from_numpy(next(container.decode(video=0)).to_ndarray(format="rgb24"))


def moves(path: str | Path) -> bool:
    """Whether a file is no still picture but an animation, a video or something else."""
    path = Path(path)
    if not path.is_file():
        return False
    try:
        with open_image(path, path.name, NO_PICTURE) as image:
            return image.format in ANIMATIONS and getattr(image, "n_frames", 1) > 1
    except InputError as error:
        return str(error).endswith(NO_PICTURE)


def covering(rows: int, columns: int, height: int, width: int) -> tuple[int, int, int, int]:
    """How a picture covers a video: the rows and columns that it is scaled to, and those cut off above and at the
    left."""
    # This computes in floats, as the official code does. For about one size in a hundred the product is slightly above
    # a whole number, and the picture becomes one pixel larger. Exact fractions would give another input to the model.
    scale = max(height / rows, width / columns)
    size = math.ceil(rows * scale), math.ceil(columns * scale)
    return *size, (size[0] - height) // 2, (size[1] - width) // 2


def fit(image: Tensor, width: int, height: int) -> Tensor:
    """uint8 [H, W, 3] → float32 [1, 3, 1, height, width] in -1..1. The picture is scaled (bilinear) until it covers the
    video, and its centre is cut out. Raises InputError if it is too long and narrow for that."""
    rows, columns = image.shape[:2]
    *size, top, left = covering(rows, columns, height, width)
    if size[0] * size[1] > max(MAX_PIXELS, 4 * height * width):
        raise InputError(f"image: {columns}x{rows} is too long and narrow for a video of {width}x{height}; crop it.")
    pixels = rearrange(image.float(), "h w c -> 1 c h w")
    pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    pixels = pixels[:, :, top : top + height, left : left + width]
    return rearrange(pixels, "1 c h w -> 1 c 1 h w") / 127.5 - 1.0


def contain(image: Tensor, width: int, height: int) -> Tensor:
    """uint8 [H, W, 3] → float32 [1, 3, 1, height, width] in -1..1. The whole picture is scaled (Lanczos) to the largest
    size that fits, in the middle of a black one."""
    rows, columns = image.shape[:2]
    # The same floats and roundings as in ComfyUI's node for it, which the published workflows use.
    scale = min(width / columns, height / rows)
    size = max(1, int(columns * scale)), max(1, int(rows * scale))
    whole = Image.new("RGB", (width, height))
    scaled = Image.fromarray(image.numpy()).resize(size, Image.Resampling.LANCZOS)
    whole.paste(scaled, ((width - size[0]) // 2, (height - size[1]) // 2))
    return rearrange(torch.from_numpy(np.array(whole)).float(), "h w c -> 1 c 1 h w") / 127.5 - 1.0
