"""The published files that the pack works with, and ComfyUI's model folders. Nothing is opened here.

Their names, repositories, sizes and folders stand only here. The module imports only Python's own library at the top,
so that `doctor` can read it even if other packages are broken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from .errors import InputError

PACK = Path(__file__).parent.parent  # not resolved, because custom_nodes may hold a link to the pack
HUB = "https://huggingface.co"
LTX = "Lightricks/LTX-2.3"
LTX_25 = "Lightricks/LTX-2.5"
GEMMA = "google/gemma-3-12b-it-qat-q4_0-unquantized"
GEMMA_FILES = (
    "gemma_3_12B_it.safetensors",
    "gemma_3_12B_it_fp8_scaled.safetensors",
    "gemma_3_12B_it_fp4_mixed.safetensors",
)
GEMMA_FILES_PAGE = f"{HUB}/Comfy-Org/ltx-2"
"""The page of ComfyUI's files of Gemma: single files with the tokenizer inside. The last one is the smallest."""
CAMERA_FILE = "ltx-2-19b-lora-camera-control-{}.safetensors"
CAMERA_REPOSITORY = "Lightricks/LTX-2-19b-LoRA-Camera-Control-{}"
CAMERA_MOVES = ("dolly-in", "dolly-out", "dolly-left", "dolly-right", "jib-up", "jib-down", "static")
ENCODER = "text_encoder/config.json"
"""Its presence in a diffusers folder shows that the folder holds a text encoder."""
PARTS_OF_A_FOLDER = ("*.json", "*.safetensors", "*.model", "*.jinja")
"""The files of a whole repository that are fetched: no pickle files and no weights of other frameworks."""


@dataclass(frozen=True)
class Published:
    """A file on the hub, or a whole repository if `file` is empty, which becomes a folder.

    what: its name in messages. size: approximate bytes. folder: the folder in ComfyUI's models folder. terms: whether
    its terms must be accepted on its page first. older: the files of earlier versions, newest first; each of them
    serves as well. below: the folder of the repository that holds the file.
    """

    what: str
    repository: str
    file: str
    folder: str
    size: int
    terms: bool = False
    older: tuple[str, ...] = ()
    below: str = ""

    @property
    def path(self) -> str:
        """Where the file is inside its repository."""
        return f"{self.below}/{self.file}" if self.below else self.file

    @property
    def name(self) -> str:
        """The name of the file, or of the repository's folder, in ComfyUI's folder."""
        return self.file or self.repository.rpartition("/")[2]

    @property
    def page(self) -> str:
        return f"{HUB}/{self.repository}"

    @property
    def url(self) -> str:
        """The address for a browser: the file, or the page of the repository."""
        return f"{self.page}/resolve/main/{self.path}" if self.file else self.page


def _split(what: str, file: str, folder: str, size: int) -> Published:
    """A file of LTX-2.5's repository, whose folders are named as ComfyUI's are."""
    return Published(what, LTX_25, f"{file}.safetensors", folder, size, terms=True, below=folder)


def _ic_lora(what: str, of: str, name: str, file: str, size: int, terms: bool = True) -> Published:
    """An IC-LoRA in a repository of its own. of: the repository of the model that it was made for."""
    return Published(
        what,
        f"{of}-22b-IC-LoRA-{name}",
        f"{of.partition('/')[2].lower()}-22b-ic-lora-{file}.safetensors",
        "loras",
        size,
        terms,
    )


MODELS: Mapping[str, Published] = {
    "dev": Published("checkpoint", LTX, "ltx-2.3-22b-dev.safetensors", "checkpoints", 46_150_000_000),
    "distilled": Published(
        "distilled checkpoint",
        LTX,
        "ltx-2.3-22b-distilled-1.1.safetensors",
        "checkpoints",
        46_149_345_334,
        older=("ltx-2.3-22b-distilled.safetensors",),
    ),
    "upscaler": Published(
        "latent upscaler",
        LTX,
        "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        "latent_upscale_models",
        995_743_560,
        older=("ltx-2.3-spatial-upscaler-x2-1.0.safetensors",),
    ),
    "distilled-lora": Published(
        "distilled LoRA",
        LTX,
        "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
        "loras",
        7_605_507_256,
        older=("ltx-2.3-22b-distilled-lora-384.safetensors",),
    ),
    "gemma": Published("text encoder", GEMMA, "", "text_encoders", 24_400_000_000, terms=True),
    "gemma-fp4": Published(
        "text encoder in fp4",
        "Comfy-Org/ltx-2",
        GEMMA_FILES[-1],
        "text_encoders",
        9_450_000_000,
        below="split_files/text_encoders",
    ),
    "dev-fp8": Published(
        "checkpoint in fp8", f"{LTX}-fp8", "ltx-2.3-22b-dev-fp8.safetensors", "checkpoints", 29_500_000_000
    ),
    "distilled-fp8": Published(
        "distilled checkpoint in fp8",
        f"{LTX}-fp8",
        "ltx-2.3-22b-distilled-fp8.safetensors",
        "checkpoints",
        29_531_884_062,
    ),
    "distilled-lora-111": Published(
        "distilled LoRA of rank 111",
        "Comfy-Org/ltx-2.3",
        "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors",
        "loras",
        2_740_000_000,
        below="split_files/loras",
    ),
    "id-lora": Published(
        "LoRA that takes a voice over",
        "Comfy-Org/ltx-2.3",
        "ltx-2.3-id-lora-talkvid-3k.safetensors",
        "loras",
        1_160_000_000,
        below="split_files/loras",
    ),
    "dev-nvfp4": Published(
        "checkpoint in NVFP4", f"{LTX}-nvfp4", "ltx-2.3-22b-dev-nvfp4.safetensors", "checkpoints", 21_700_000_000
    ),
    "dev-mxfp8": Published(
        "transformer in MXFP8",
        "Kijai/LTX2.3_comfy",
        "ltx-2.3-22b-dev_transformer_only_mxfp8_block32.safetensors",
        "diffusion_models",
        24_100_000_000,
        below="diffusion_models",
    ),
    "dev-2.5": _split("checkpoint", "ltx-2.5-22b-dev-transformer-bf16", "diffusion_models", 42_018_190_584),
    "distilled-2.5": _split(
        "distilled checkpoint", "ltx-2.5-22b-distilled-transformer-bf16", "diffusion_models", 42_018_190_584
    ),
    "dev-int8-2.5": _split(
        "checkpoint in int8", "ltx-2.5-22b-dev-transformer-comfy-int8-convrot", "diffusion_models", 21_500_000_000
    ),
    "distilled-int8-2.5": _split(
        "distilled checkpoint in int8",
        "ltx-2.5-22b-distilled-transformer-comfy-int8-convrot",
        "diffusion_models",
        21_500_000_000,
    ),
    "distilled-nvfp4-2.5": _split(
        "distilled checkpoint in NVFP4", "ltx-2.5-22b-distilled-transformer-nvfp4", "diffusion_models", 18_700_000_000
    ),
    "text-encoder-2.5": _split("text encoder", "gemma4-12b-with-proj-ltx-2.5-bf16", "text_encoders", 26_263_858_182),
    "text-encoder-int8-2.5": _split(
        "text encoder in int8", "gemma4-12b-with-proj-ltx-2.5-comfy-int8-convrot", "text_encoders", 15_400_000_000
    ),
    "video-vae-2.5": _split("video VAE", "ltx-2.5-video-vae-conv-bf16", "vae", 1_452_269_922),
    "diffusion-vae-2.5": _split("video VAE with the diffusion decoder", "ltx-2.5-video-vae-bf16", "vae", 1_472_223_346),
    "audio-vae-2.5": _split("audio VAE", "ltx-2.5-audio-vae-bf16", "vae", 364_866_540),
    "upscaler-2.5": _split(
        "latent upscaler", "ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0", "latent_upscale_models", 995_778_752
    ),
    "distilled-lora-2.5": _split("distilled LoRA", "ltx-2.5-22b-distilled-lora-450-bf16", "loras", 8_899_889_568),
    "expander": Published("prompt expander", "google/gemma-4-E2B-it", "", "text_encoders", 10_200_000_000),
    "expander-int8": Published(
        "prompt expander in int8",
        "Comfy-Org/gemma-4",
        "gemma4_e2b_it_int8_convrot.safetensors",
        "text_encoders",
        4_840_000_000,
        below="text_encoders",
    ),
    "union-control": Published(
        "IC-LoRA for depth, edges and poses",
        f"{LTX}-22b-IC-LoRA-Union-Control",
        "ltx-2.3-22b-ic-lora-union-control-ref0.5.safetensors",
        "loras",
        654_465_352,
    ),
    "ingredients": _ic_lora(
        "IC-LoRA for a picture of who and what shall appear", LTX, "Ingredients", "ingredients-0.9", 1_308_778_338
    ),
    "ingredients-2.5": _ic_lora(
        "IC-LoRA for a picture of who and what shall appear", LTX_25, "Ingredients", "ingredients-0.9", 1_308_787_472
    ),
    "motion-track": _ic_lora(
        "IC-LoRA for paths", LTX, "Motion-Track-Control", "motion-track-control-ref0.5", 327_000_000, terms=False
    ),
    "in-outpainting": _ic_lora("IC-LoRA for filling in", LTX, "In-Outpainting", "in-outpainting-0.9", 1_308_778_338),
    "pixel-upscaler": _ic_lora(
        "IC-LoRA for twice the size", LTX, "Pixel-Spatial-Upscaler", "pixel-spatial-upscaler-x2-0.9", 654_000_000
    ),
    "pixel-upscaler-2.5": _ic_lora(
        "IC-LoRA for twice the size", LTX_25, "Pixel-Spatial-Upscaler", "pixel-spatial-upscaler-x2-1.0", 327_322_640
    ),
    "alpha-gen-2.5": _ic_lora("IC-LoRA for mattes", LTX_25, "Alpha-Gen", "alpha-gen-0.9", 1_308_787_472),
    "dubit": Published(
        "IC-LoRA for dubbing",
        f"{LTX}-22b-IC-LoRA-DubIt",
        "ltx-2.3-22b-ic-lora-dubit-0.9.safetensors",
        "loras",
        2_466_665_072,
        terms=True,
    ),
    "detailer": Published(  # published for LTX-2 alone, as the camera LoRAs
        "IC-LoRA for details",
        "Lightricks/LTX-2-19b-IC-LoRA-Detailer",
        "ltx-2-19b-ic-lora-detailer.safetensors",
        "loras",
        2_600_000_000,
    ),
    "safety-checker": Published("safety checker", "Falconsai/nsfw_image_detection", "", "safety_checker", 344_000_000),
    **{
        move: Published(
            f"camera LoRA {move}",
            CAMERA_REPOSITORY.format(move.title()),
            CAMERA_FILE.format(move),
            "loras",
            400_000_000,
        )
        for move in CAMERA_MOVES
    },
}


@dataclass(frozen=True)
class Generation:
    """A version of LTX that the pack supports.

    crf: the compression of the images that the model was trained on, as H.264's constant rate factor. checkpoint,
    distilled, upscaler, distilled_lora, encoder, apart: keys of MODELS; `apart` are the parts that neither the
    checkpoint nor the text encoder holds. parts: a published file for each part that people also keep, or that only is,
    outside the checkpoint.
    """

    version: str
    crf: int
    checkpoint: str
    distilled: str
    upscaler: str
    distilled_lora: str
    encoder: str
    parts: Mapping[str, str]
    apart: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"LTX-{self.version}"

    @property
    def default(self) -> tuple[str, ...]:
        """The keys of everything that a job of two stages loads."""
        return (self.checkpoint, self.distilled_lora, self.upscaler, self.encoder, *self.apart)


V23 = Generation(
    version="2.3",
    crf=33,
    checkpoint="dev",
    distilled="distilled",
    upscaler="upscaler",
    distilled_lora="distilled-lora",
    encoder="gemma-fp4",
    parts={
        "video_vae": "LTX23_video_vae_bf16.safetensors",
        "audio_vae": "LTX23_audio_vae_bf16.safetensors",
        "connectors": "ltx-2.3_text_projection_bf16.safetensors",
    },
)
V25 = Generation(
    version="2.5",
    crf=18,
    checkpoint="dev-2.5",
    distilled="distilled-2.5",
    upscaler="upscaler-2.5",
    distilled_lora="distilled-lora-2.5",
    encoder="text-encoder-2.5",
    parts={
        "video_vae": MODELS["video-vae-2.5"].name,
        "audio_vae": MODELS["audio-vae-2.5"].name,
        "connectors": MODELS["dev-2.5"].name,
    },
    apart=("video-vae-2.5", "audio-vae-2.5"),
)
GENERATIONS = (V23, V25)
DEFAULT = V23.default
"""The models that the default workflow loads."""
SETS: Mapping[str, tuple[str, ...]] = {
    "default": DEFAULT,
    "small": ("dev-fp8", "distilled-lora-111", "upscaler", "gemma-fp4"),
    "16-bit": ("dev", "distilled-lora", "upscaler", "gemma"),
    "2.5": V25.default,
    "2.5-small": ("dev-int8-2.5", V25.distilled_lora, V25.upscaler, "text-encoder-int8-2.5", *V25.apart),
}
"""What a job of two stages loads: as the workflows name it, for small cards, without any quantized weights, and with
LTX-2.5, in 16 bits and for small cards."""
VERSIONS = " and ".join(each.version for each in GENERATIONS)
WANTED = " or ".join(MODELS[each.checkpoint].name for each in GENERATIONS)
"""The files that an error message names if a checkpoint is missing or wrong."""


def generation(version: str) -> Generation | None:
    """The supported version of LTX that a file means by "2.5.0" or the like; None if there is none."""
    return next((each for each in GENERATIONS if re.match(rf"{re.escape(each.version)}(\D|$)", version)), None)


_NAMED = re.compile(r"ltx[-_ ]*v?(\d)(?:[._](\d)(?!\d)|(\d)(?![\da-z]))", re.IGNORECASE)


def named_version(file: str) -> str:
    """The version of LTX that a file's name tells, "2.5" for ltx-2.5-22b-dev.safetensors and LTX25_vae.safetensors; ""
    if it tells none."""
    found = _NAMED.search(file)
    return f"{found[1]}.{found[2] or found[3]}" if found else ""


def named_file(name: object) -> Published | None:
    """The published file that a name in ComfyUI's lists means, None for any other file."""
    file = PureWindowsPath(name).name.lower() if isinstance(name, str) else ""  # it knows both kinds of slashes
    return next((model for model in MODELS.values() if file and model.file.lower() == file), None)


PART_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "video_vae": ("vae", "checkpoints"),
    "audio_vae": ("vae", "checkpoints"),
    "connectors": ("text_encoders", "diffusion_models", "checkpoints"),
}
"""The folders in which people keep those parts; a whole checkpoint has them, too."""

ALSO = {"text_encoders": ("clip",), "diffusion_models": ("unet",)}
"""Older names of ComfyUI's folders, which ComfyUI still uses."""
KINDS = (
    "checkpoints",
    "diffusion_models",
    "diffusers",
    "vae",
    "text_encoders",
    "latent_upscale_models",
    "loras",
    "safety_checker",
)
EXTRA = "extra_model_paths.yaml"
DEPTH = 4  # levels of subfolders in which a model is searched


OF_ONE_VERSION = re.compile(
    r"(?<![a-z])(distilled|dub-?it|lip-?dub|ic[-_ ]?lora.*[-_ ]relight)(?![a-z])", re.IGNORECASE
)
"""In the names of LoRAs that the makers give for the version alone that they were trained on. Other people's styles may
have light in their names, too."""


def is_distilled(name: str) -> bool:
    """Whether a file is distilled, by its name: the published files have no other sign of it."""
    return "distilled" in name.lower()


def overdone(checkpoint: str, strengths: Sequence[float]) -> str | None:
    """One sentence if a distilled LoRA acts on a checkpoint that its name calls distilled, else None."""
    if is_distilled(checkpoint) and any(strengths):
        return "the checkpoint is distilled already (by its name); the distilled LoRA overdoes the picture"
    return None


def around(pack: Path) -> Path | None:
    """The models folder of the ComfyUI that has the pack in custom_nodes/, None if there is none."""
    models = pack.parent.parent / "models"
    return models if pack.parent.name == "custom_nodes" and models.is_dir() else None


def folders(models: Path) -> dict[str, list[Path]]:
    """Maps each kind of model to ComfyUI's folders for it; new models go into the first one.

    Raises InputError if EXTRA cannot be read.
    """
    found = {kind: [models / name for name in (kind, *ALSO.get(kind, ()))] for kind in KINDS}
    for kind, path, first in _extra(models.parent / EXTRA):
        if kind in found and path not in found[kind]:
            found[kind].insert(0 if first else len(found[kind]), path)
    return found


def _extra(file: Path) -> list[tuple[str, Path, bool]]:
    """Reads ComfyUI's file of further folders: (kind, folder, whether it goes first). It may be missing."""
    if not file.is_file():
        return []
    wrong = f"{file}: cannot be read as ComfyUI's list of model folders ({{}}); correct it, or move it away."
    try:
        import yaml  # ComfyUI's own requirement
    except (ImportError, OSError) as error:
        raise InputError(wrong.format(f"PyYAML cannot be imported: {error}")) from error
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(wrong.format(" ".join(str(error).split()))) from error
    sections = content.values() if isinstance(content, dict) else [] if content is None else [content]
    found = []
    for section in sections:
        if section is None:
            continue
        if not isinstance(section, dict):
            raise InputError(wrong.format("it has no lists of folders"))
        section = dict(section)
        base = os.path.expandvars(os.path.expanduser(str(section.pop("base_path", ""))))
        first = section.pop("is_default", False) is True
        for kind, lines in section.items():
            for line in filter(None, str(lines).split("\n")):
                path = Path(os.path.normpath(file.parent / base / line.strip()))
                found += [(name, path, first) for name in KINDS if kind in (name, *ALSO.get(name, ()))]
    return found


def files(folder: Path, *suffixes: str) -> list[Path]:
    """Files with these suffixes, at most DEPTH folders deep, sorted. A folder that cannot be read counts as empty."""
    found = []
    for root, below, names in os.walk(folder, followlinks=True):
        if len(Path(root).relative_to(folder).parts) >= DEPTH:
            below.clear()
        below.sort()
        found += [Path(root) / name for name in sorted(names) if name.lower().endswith(suffixes)]
    return found


def present(model: Published, places: Mapping[str, list[Path]]) -> Path | None:
    """The path of a published model that is there already, in any folder of its kind, else None. A repository's folder
    is recognised by its config.json."""
    for folder in places[model.folder]:
        if not model.file and (folder / model.name / "config.json").is_file():
            return folder / model.name
        for path in files(folder, model.file.lower()) if model.file else ():
            if path.name == model.file:
                return path
    return None


def total(keys: Sequence[str]) -> int:
    """Approximate bytes of several published models, by their keys."""
    return sum(MODELS[key].size for key in keys)


def size(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
