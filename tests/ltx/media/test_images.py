"""Reading pictures and preparing them for the model, against the official code, closed formulas and the goldens."""

from __future__ import annotations

import json
import math
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from a2v.ltx.diffusion.encode import encode_image
from a2v.ltx.errors import InputError
from a2v.ltx.media import images
from a2v.tests.ltx.goldens import relative
from PIL import Image, ImageCms, features
from safetensors import safe_open

RED, GREEN, GREY = (255, 0, 0), (0, 255, 0), (128, 128, 128)


def photo(height: int, width: int) -> torch.Tensor:
    """Smooth colours with some grain: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    rows = np.stack([120 + 90 * np.sin(x / 17), 120 + 80 * np.cos(y / 23), 60 + (x + y) % 100], axis=-1)
    rows += np.random.default_rng(0).normal(0, 6, rows.shape)
    return torch.from_numpy(rows.clip(0, 255).astype(np.uint8))


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """A profile whose red is sRGB's green and the other way round: the tag table's names exchanged."""
    profile = bytearray(srgb_profile())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def linear_grey_profile() -> bytes:
    """A profile of grey whose values are linear light, with the tags that it needs."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey" + bytes(80),
        b"wtpt": b"XYZ " + bytes(4) + white,
        b"kTRC": b"curv" + bytes(8),  # a curve of no points is linear
    }
    table, body, begin = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", begin + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s12s4s", begin + len(body), b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ",
                       bytes(12), b"acsp") + bytes(28) + white + bytes(48)  # fmt: skip
    return head + table + body


# Reading


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm", "tga"])
def test_lossless_formats_give_the_pixels_back(tmp_path, suffix):
    pixels = photo(30, 41)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels.numpy()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    read = images.load_image(path)
    assert read.dtype == torch.uint8
    assert torch.equal(read, pixels)


# what the camera's sensor saw, turned so that EXIF orientation n puts it upright again
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_turns_the_picture_upright(tmp_path, orientation):
    upright = photo(20, 31)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURNED[orientation](upright.numpy()))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(images.load_image(tmp_path / "a.png"), upright)


def test_a_profile_is_turned_into_srgb(tmp_path):
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert (images.load_image(tmp_path / "a.png")[0, 0].int() - torch.tensor(GREEN)).abs().max() <= 1
    Image.fromarray(photo(16, 16).numpy()).save(tmp_path / "b.png", icc_profile=srgb_profile())
    assert (images.load_image(tmp_path / "b.png").int() - photo(16, 16).int()).abs().max() <= 1


@pytest.mark.parametrize("profile", [b"no profile", srgb_profile()[:200]])
def test_a_broken_profile_is_ignored(tmp_path, profile):
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.png", icc_profile=profile)
    assert images.load_image(tmp_path / "a.png")[0, 0].tolist() == list(RED)


def test_a_profile_of_another_colour_space_is_ignored(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.tiff", icc_profile=srgb_profile())
    assert images.load_image(tmp_path / "a.tiff")[0, 0].tolist() == list(RED)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert (images.load_image(tmp_path / "a.jpg")[8, 8].int() - torch.tensor(RED)).abs().max() <= 3


def test_transparency_lies_over_black(tmp_path):
    Image.new("RGBA", (4, 4), (200, 100, 50, 128)).save(tmp_path / "a.png")
    assert (images.load_image(tmp_path / "a.png")[0, 0].int() - torch.tensor([100, 50, 25])).abs().max() <= 1
    Image.new("LA", (4, 4), (200, 0)).save(tmp_path / "b.png")
    assert not images.load_image(tmp_path / "b.png").any()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.save(tmp_path / "c.png", transparency=1)
    assert not images.load_image(tmp_path / "c.png").any()
    palette.save(tmp_path / "d.png")
    assert images.load_image(tmp_path / "d.png")[0, 0].tolist() == list(RED)
    Image.new("RGB", (4, 4), RED).save(tmp_path / "e.png", transparency=RED)
    assert not images.load_image(tmp_path / "e.png").any()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    grey = np.linspace(0, 65535, 256 * 4).reshape(4, 256).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    read = images.load_image(tmp_path / f"a.{suffix}")
    assert torch.equal(read[..., 0], read[..., 2])
    assert np.abs(read[..., 0].numpy() - grey / 257).max() <= 0.5


def test_sixteen_bits_with_a_transparent_grey(tmp_path):
    grey = np.arange(30000, 30008, dtype=np.uint16)[None]
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=30003)
    read = images.load_image(tmp_path / "a.png")[0, :, 0]
    assert (read == 0).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("kind", ["opaque", "opacity", "one grey", "16 bits"])
def test_a_profile_of_grey_counts_whatever_is_transparent(tmp_path, kind):
    """It is linear light, of which half is brighter in sRGB."""
    picture = Image.new("L", (4, 4), 128)
    more = {"transparency": 7} if kind == "one grey" else {}
    if kind == "opacity":
        picture.putalpha(255)
    if kind == "16 bits":
        picture = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    picture.save(tmp_path / "a.png", icc_profile=linear_grey_profile(), **more)
    assert (images.load_image(tmp_path / "a.png").int() - 188).abs().max() <= 1


def test_one_bit_and_grey(tmp_path):
    Image.new("1", (4, 4), 1).save(tmp_path / "a.png")
    assert images.load_image(tmp_path / "a.png").min() == 255
    Image.new("L", (4, 4), 128).save(tmp_path / "b.png")
    assert images.load_image(tmp_path / "b.png")[0, 0].tolist() == list(GREY)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert images.load_image(tmp_path / f"a.{suffix}")[0, 0].tolist() == list(RED)


def test_bad_files_are_one_sentence_with_their_name(tmp_path):
    Image.fromarray(photo(200, 200).numpy()).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    Image.fromarray(photo(200, 200).numpy()).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:2000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "letter.jpg").write_text("Dear reader")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tiff")
    Image.new("L", (20_000, 2)).save(tmp_path / "wide.png")
    reasons = {
        "cut.png": "cannot be read", "cut.jpg": "cannot be read", "empty.png": "cannot be read",
        "letter.jpg": "cannot be read", "program.eps": "cannot be read", "float.tiff": "float pixels",
        "wide.png": "is 20000x2; at most", "gone.png": "no such file",
    }  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason) as caught:
            images.load_image(tmp_path / name)
        assert str(caught.value).startswith(f"{name}: ")
        assert str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is a folder"):
        images.load_image(tmp_path)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, side):
    Image.new("1", (8, 8)).save(tmp_path / "bomb.png")
    data = bytearray((tmp_path / "bomb.png").read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(InputError, match=r"bomb\.png: is .*at most 80 megapixels"):
        images.load_image(tmp_path / "bomb.png")


# What phones take


def box(*brands: bytes) -> bytes:
    """The first box of a HEIF file, and nothing that could be decoded."""
    inside = brands[0] + bytes(4) + b"".join(brands)
    return (8 + len(inside)).to_bytes(4, "big") + b"ftyp" + inside + bytes(200)


@pytest.mark.parametrize(
    ("name", "brands", "said"),
    [
        ("a.heic", (b"heic", b"mif1"), "is HEIC, which needs pillow-heif; install that, or save it as PNG"),
        ("a.jpg", (b"mif1", b"heic"), "is HEIC, which needs pillow-heif; install that, or save it as PNG"),
        ("a.avif", (b"avif", b"mif1"), r"is AVIF, which needs Pillow 11\.3 or newer; install that, or save it as PNG"),
        ("a.mp4", (b"isom", b"avc1"), "cannot be read as an image"),
    ],
)
def test_where_nothing_reads_it_the_sentence_says_what_does(tmp_path, monkeypatch, name, brands, said):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it fails
    Image.init()
    for known in ("HEIF", "AVIF"):
        if known in Image.OPEN:
            monkeypatch.delitem(Image.OPEN, known)
    (tmp_path / name).write_bytes(box(*brands))
    with pytest.raises(InputError, match=f"{name}: {said}"):
        images.load_image(tmp_path / name)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_with_its_transparency(tmp_path):
    picture = photo(32, 48)
    Image.fromarray(picture.numpy()).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4")
    assert (images.load_image(tmp_path / "a.avif").int() - picture.int()).abs().float().mean() < 3
    Image.new("RGBA", (8, 8), (200, 100, 50, 0)).save(tmp_path / "clear.avif")
    assert images.load_image(tmp_path / "clear.avif").max() == 0


def test_heic_is_read_with_its_transparency(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: it is an extra")
    picture = photo(64, 96)
    heif.from_pillow(Image.fromarray(picture.numpy())).save(tmp_path / "a.heic", quality=-1)
    assert (images.load_image(tmp_path / "a.heic").int() - picture.int()).abs().float().mean() < 8
    heif.from_pillow(Image.new("RGBA", (64, 64), (200, 100, 50, 0))).save(tmp_path / "clear.heic", quality=-1)
    assert images.load_image(tmp_path / "clear.heic").max() <= 2
    with pytest.raises(InputError, match=r"cut\.heic: cannot be read"):
        (tmp_path / "cut.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:300])
        images.load_image(tmp_path / "cut.heic")


# From the graph


def test_from_float_undoes_comfyuis_division():
    pixels = photo(16, 16)
    assert torch.equal(images.from_float(pixels.float() / 255), pixels)
    assert images.from_float(torch.tensor([[[-1.0, 0.5, 2.0]]])).tolist() == [[[0, 128, 255]]]
    assert images.from_float(torch.tensor([[[1.0, 1.0, 1.0, 0.5]]])).tolist() == [[[128, 128, 128]]]


@pytest.mark.parametrize("image", [torch.zeros(1, 4, 4, 3), torch.zeros(4, 4, 5), torch.zeros(0, 4, 3)])
def test_from_float_wants_one_picture(image):
    with pytest.raises(InputError, match="image: its shape"):
        images.from_float(image)


def test_from_float_refuses_what_is_no_number():
    with pytest.raises(InputError, match="NaN"):
        images.from_float(torch.full((4, 4, 3), float("nan")))


# Compression and fitting


def test_compression_keeps_the_picture_and_loses_the_grain():
    pixels = photo(101, 133)
    out = images.compress(pixels)
    assert (out.dtype, tuple(out.shape)) == (torch.uint8, (100, 132, 3))
    error = (out.float() - pixels[:100, :132].float()).abs().mean()
    assert 1 < error < 15
    assert (images.compress(pixels, 1).float() - pixels[:100, :132].float()).abs().mean() < 0.8 * error
    assert torch.equal(images.compress(pixels, 0), pixels)
    assert torch.equal(images.compress(pixels), out)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (1, 9), (9, 1), (3, 700)])
def test_the_smallest_pictures(height, width):
    grey = torch.full((height, width, 3), 128, dtype=torch.uint8)
    out = images.fit(images.compress(grey), 64, 96)
    assert out.shape == (1, 3, 1, 96, 64)
    assert out.abs().max() < 0.05


@pytest.mark.parametrize("height", [150, 49, 200])
@pytest.mark.parametrize("width", [260, 97])
@pytest.mark.parametrize("target", [(96, 64), (64, 64), (512, 768)])
def test_compression_and_fit_are_the_official_ones(height, width, target):
    media = pytest.importorskip("ltx_pipelines.utils.media_io")
    pixels = photo(height, width)
    small = media.preprocess(pixels.numpy())
    assert np.array_equal(images.compress(pixels).numpy(), small)
    theirs = media.resize_and_center_crop(torch.tensor(small, dtype=torch.float32), target[1], target[0]) / 127.5 - 1
    assert torch.equal(images.fit(torch.from_numpy(small), *target), theirs)


def test_fit_by_the_formula():
    """Bilinear with half-pixel centres, no antialias, centre crop: by hand in float64."""
    pixels, width, height = photo(50, 40), 64, 32
    scale = max(height / 50, width / 40)
    rows, columns = math.ceil(50 * scale), math.ceil(40 * scale)

    def along(axis: np.ndarray, size: int) -> np.ndarray:
        at = ((np.arange(size) + 0.5) * axis.shape[0] / size - 0.5).clip(0)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, axis.shape[0] - 1)
        part = (at - low)[:, None, None]
        return axis[low] * (1 - part) + axis[high] * part

    grown = along(along(pixels.numpy().astype(float), rows).transpose(1, 0, 2), columns).transpose(1, 0, 2)
    top, left = (rows - height) // 2, (columns - width) // 2
    wanted = grown[top : top + height, left : left + width] / 127.5 - 1
    assert np.abs(images.fit(pixels, width, height)[0, :, 0].permute(1, 2, 0).numpy() - wanted).max() < 1e-4


def test_an_exact_fit_is_only_scaled_to_minus_one_to_one():
    pixels = photo(64, 96)
    assert torch.equal(images.fit(pixels, 96, 64)[0, :, 0], pixels.permute(2, 0, 1).float() / 127.5 - 1)
    assert torch.equal(images.contain(pixels, 96, 64), images.fit(pixels, 96, 64))


@pytest.mark.parametrize(
    ("shape", "box"), [((50, 200), (0, 24, 128, 32)), ((200, 50), (54, 0, 20, 80)), ((1, 900), (0, 39, 128, 1))]
)
def test_a_whole_picture_stands_on_black(shape, box):
    pixels, (left, top, width, height) = photo(*shape), box
    whole = images.contain(pixels, 128, 80)
    assert whole.shape == (1, 3, 1, 80, 128) and whole.dtype == torch.float32
    inside = whole[0, :, 0, top : top + height, left : left + width].clone()
    scaled = np.asarray(Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.LANCZOS))
    assert torch.equal(inside, torch.tensor(scaled).permute(2, 0, 1).float() / 127.5 - 1)
    whole[0, :, 0, top : top + height, left : left + width] = -1
    assert (whole == -1).all()


def test_what_moves(tmp_path):
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    for name in ("a.gif", "a.png", "a.webp", "a.tiff", "a.mpo"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
    moving = {name for name in ("a.gif", "a.png", "a.webp", "a.tiff", "a.mpo") if images.moves(tmp_path / name)}
    assert moving == {"a.gif", "a.png", "a.webp"}, "pages and views are one picture"


def test_a_thread_of_an_image_is_refused_not_blown_up():
    with pytest.raises(InputError, match="16000x2 is too long and narrow for a video of 768x512"):
        images.fit(torch.zeros(2, 16_000, 3, dtype=torch.uint8), 768, 512)


# Goldens


@pytest.mark.parametrize("name", ["ltx2", "endpoint_defaults"])
def test_golden_pixels_and_latents(oracle, name):
    from a2v.ltx.weights.checkpoint import load_checkpoint

    vae = load_checkpoint(oracle / "tiny" / "ltx-2.3-tiny.safetensors").video_vae(torch.float32)
    with safe_open(oracle / f"{name}.safetensors", "pt") as golden:
        run = json.loads(golden.metadata()["info"])
        files = [file for file, key in (("first.png", "first"), ("last.png", "last")) if run[key] >= 0]
        encoded = [(file, divisor) for divisor in (2, 1) for file in files]
        for i, (file, divisor) in enumerate(encoded):
            pixels, latent = (golden.get_tensor(f"cond/{i}/{part}") for part in ("pixels", "latent"))
            source = images.compress(images.load_image(oracle / "tiny" / file))
            ours = images.fit(source, run["width"] // divisor, run["height"] // divisor)
            # 2e-7 without vector instructions; with AVX2, F.interpolate itself rounds its positions otherwise
            assert (ours - pixels).abs().max() < 2e-5
            with torch.inference_mode():
                assert relative(encode_image(vae, ours), latent) < 1e-5
                assert relative(encode_image(vae, pixels), latent) < 5e-6
