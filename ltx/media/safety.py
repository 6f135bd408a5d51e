"""The safety checker: an image classifier in a transformers folder looks at frames spread evenly over the clip.

It only reports a verdict. The caller decides whether a flagged clip is refused or replaced, and what happens if no
classifier is installed. Nothing is downloaded, no pickle file is opened, and no code of a classifier's folder runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel

from ..errors import InputError
from ..foreign import check_kind

REQUIRED = "LTX_A2V_SAFETY"  # an environment variable; with the value "require" no video is made without a checker
UNCHECKED = "the safety checker did not run"
SAMPLES = 16  # number of frames that are checked, with the first and the last frame
THRESHOLD = 0.5  # a frame with this score or a higher one flags the clip
# A label with one of these words means unsafe, unless it also has a word of NEGATIONS ("non-nude").
UNSAFE = frozenset(("nsfw", "unsafe", "explicit", "nude", "nudes", "nudity", "naked", "porn", "porno", "pornography"))
UNSAFE |= {"pornographic", "hentai", "sexy", "sexual", "sensual", "erotic", "erotica", "gore", "violent", "violence"}
NEGATIONS = frozenset(("no", "non", "not", "without"))
NOT_SAFE = ("not", "safe")  # neighbours that mean unsafe, too


@dataclass(frozen=True)
class Checker:
    """A classifier with its input processor. unsafe: indices of the labels that mean unsafe.

    independent: each label has its own probability; otherwise the probabilities of all labels add up to 1.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor
    unsafe: tuple[int, ...]
    independent: bool
    folder: Path


@dataclass(frozen=True)
class Verdict:
    """The result for a clip. score: the highest score of a checked frame, 0–1; frame: that frame's index in the
    clip."""

    flagged: bool
    score: float
    frame: int
    frames_looked_at: int


def find_checker(root: Path) -> Path | None:
    """Finds a folder with a config.json in `root` (models/safety_checker): `root` itself or the least deep folder, and
    of several the first by name."""
    folders = (path.parent for path in root.rglob("config.json"))
    return min(folders, key=lambda folder: (len(folder.parts), str(folder)), default=None)


def load_checker(folder: str | Path, device: torch.device | str = "cpu", unsafe: Collection[str] = UNSAFE) -> Checker:
    """Loads an image classifier from a local transformers folder, in float32. unsafe: lower-case words of labels that
    flag a frame.

    Raises InputError if a file is missing or damaged, if it is not an image classifier or gives no score, or if no
    label, or every label, means unsafe.
    """
    folder = Path(folder)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        if not any((folder / file).is_file() for file in (name, f"{name}.index.json")):  # weights may be in shards
            raise InputError(
                f"{folder / name}: not found; put a whole image classifier of transformers with safetensors weights "
                "into that folder."
            )
        check_kind(folder / name, "the whole image classifier again", json_text=name.endswith(".json"))
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoImageProcessor.from_pretrained(folder, **local)
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
        )
    except Exception as error:  # a damaged folder can raise nearly any exception
        line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{folder}: cannot be loaded as an image classifier ({line}); download it again or use another."
        ) from error
    if report["missing_keys"]:  # transformers fills missing weights with noise, for instance the head of a backbone
        raise InputError(
            f"{folder}: its weights lack {min(report['missing_keys'])}, so it is not a trained image classifier; "
            "use another one."
        )
    labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    indices = tuple(i for i, label in enumerate(labels) if _means_unsafe(label, frozenset(unsafe)))
    listed = ", ".join(labels)
    if not indices:
        raise InputError(
            f"{folder / 'config.json'}: none of its labels ({listed}) is known to mean unsafe; use another classifier, "
            "or rename the unsafe one to nsfw in id2label."
        )
    independent = model.config.problem_type == "multi_label_classification" or len(labels) == 1
    if len(indices) == len(labels) and not independent:
        raise InputError(
            f"{folder / 'config.json'}: all its labels ({listed}) mean unsafe, so it would flag everything; "
            "use another classifier."
        )
    checker = Checker(model.eval().requires_grad_(False).to(device), processor, indices, independent, folder)
    _check_scores(checker)
    return checker


def _check_scores(checker: Checker) -> None:
    """Scores a black frame. Raises InputError if the classifier cannot: a wrong size would be met after sampling."""
    try:
        score(checker, torch.zeros(64, 64, 3, dtype=torch.uint8))
    except InputError:
        raise
    except Exception as error:  # a classifier's own code can raise nearly anything
        line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{checker.folder}: its preprocessor_config.json does not fit its model ({line}); download both again."
        ) from error


def sampled(total: int, count: int = SAMPLES) -> list[int]:
    """Indices of `count` out of `total` frames, spread evenly from the first to the last. A shorter clip gives all its
    frames. Raises ValueError for an impossible number."""
    if total < 1 or count < 2:
        raise ValueError(f"{count} of {total} frames")
    count = min(count, total)
    step = Fraction(total - 1, max(1, count - 1))
    return [round(i * step) for i in range(count)]


@torch.no_grad()
def score(checker: Checker, frame: Tensor) -> float:
    """Scores one frame: uint8 [H, W, 3] → the sum of the unsafe labels' probabilities, 0–1; for independent labels
    their highest probability. Raises InputError if the classifier gives no finite number."""
    picture = Image.fromarray(frame.cpu().numpy())
    inputs = checker.processor(images=picture, return_tensors="pt").to(checker.model.device)
    logits = checker.model(**inputs).logits[0].double()
    unsafe = list(checker.unsafe)
    chance = logits.sigmoid()[unsafe].max() if checker.independent else logits.softmax(0)[unsafe].sum()
    if not chance.isfinite():  # NaN is below every threshold and would count as safe
        raise InputError(
            f"{checker.folder}: gives no finite score for a frame; its weights are damaged: download it again."
        )
    return min(1.0, chance.item())


class Watch:
    """Checks a clip while its chunks go through. It holds only the current chunk."""

    def __init__(self, checker: Checker, total: int, *, count: int = SAMPLES, threshold: float = THRESHOLD) -> None:
        if not 0 < threshold <= 1:
            raise InputError(f"The safety threshold {threshold} must be above 0 and at most 1.")
        self.checker, self.total, self.threshold = checker, total, threshold
        self.wanted = sampled(total, count)
        self.scores: dict[int, float] = {}  # by frame, in the clip's order
        self.complete = False

    def __call__(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yields the same chunks, uint8 [n, H, W, 3], after checking each. Raises ValueError if their frames are not
        `total`."""
        start = 0
        for chunk in chunks:
            stop = start + len(chunk)
            for frame in self.wanted:
                if start <= frame < stop:
                    self.scores[frame] = score(self.checker, chunk[frame - start])
            yield chunk
            start = stop
        if start != self.total:
            raise ValueError(f"the clip has {start} frames, not {self.total} as announced")
        self.complete = True

    @property
    def flagged(self) -> bool:
        """Whether a frame that was checked so far is unsafe. A caller may ask at any time, to stop early."""
        return any(value >= self.threshold for value in self.scores.values())

    @property
    def verdict(self) -> Verdict:
        """The result for the whole clip. Raises RuntimeError if the clip has not ended."""
        if not self.complete:
            raise RuntimeError(f"{len(self.scores)} of {len(self.wanted)} frames are checked: the clip has not ended")
        frame, highest = max(self.scores.items(), key=lambda item: item[1])
        return Verdict(self.flagged, highest, frame, len(self.scores))


def check(checker: Checker, frames: Tensor, *, count: int = SAMPLES, threshold: float = THRESHOLD) -> Verdict:
    """Checks a whole clip, uint8 [n, H, W, 3]."""
    watch = Watch(checker, len(frames), count=count, threshold=threshold)
    for _ in watch([frames]):
        pass
    return watch.verdict


def blank(frames: Tensor) -> Tensor:
    """Black frames of the same shape, which replace a flagged clip."""
    return torch.zeros_like(frames)


def _means_unsafe(label: str, unsafe: frozenset[str]) -> bool:
    words = re.split(r"[\W_]+", label.lower())
    return NOT_SAFE in pairwise(words) or (not unsafe.isdisjoint(words) and NEGATIONS.isdisjoint(words))
