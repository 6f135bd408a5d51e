"""The safety checker on tiny real classifiers whose weights are set so that brightness alone decides."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from a2v.ltx.errors import InputError
from a2v.ltx.media.safety import SAMPLES, Watch, blank, check, find_checker, load_checker, sampled, score
from torch import Tensor
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

SLOPE = 8.0  # of the ResNet's logit over brightness; it is 0 at half
PROCESSORS = {"resnet": "ConvNextImageProcessor", "vit": "ViTImageProcessor", "siglip": "SiglipImageProcessor"}


def write(folder: Path, kind: str = "resnet", labels: tuple[str, ...] = ("normal", "nsfw"), **config: object) -> Path:
    """A classifier whose last label's logit grows with brightness and whose others are 0."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    transformer = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4}
    transformer |= {"image_size": 8, "patch_size": 4}
    if kind == "resnet":
        widths = {"embedding_size": 2, "hidden_sizes": [2], "depths": [1], "layer_type": "basic"}
        model: PreTrainedModel = ResNetForImageClassification(ResNetConfig(**widths, **names, **config))
        _brightness_by_convolution(model)
    elif kind == "vit":
        model = ViTForImageClassification(ViTConfig(**transformer, **names, **config))
        _brightness_by_patches(model)
    else:
        model = SiglipForImageClassification(SiglipConfig(vision_config=transformer, **names, **config))
        _brightness_by_patches(model)
    model.save_pretrained(folder)
    centred = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    plain = {"do_normalize": False, "crop_pct": 1.0}
    size = {"shortest_edge": 8} if kind == "resnet" else {"height": 8, "width": 8}
    document = {"image_processor_type": PROCESSORS[kind], "do_resize": True, "size": size, "do_rescale": True}
    document |= {"rescale_factor": 1 / 255, **(plain if kind == "resnet" else centred)}
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    return folder


def _zero(model: PreTrainedModel) -> dict[str, Tensor]:
    """All weights at 0, norms left as they are; the returned tensors share the model's memory."""
    state = model.state_dict()
    for name, tensor in state.items():
        if "norm" not in name and tensor.is_floating_point():
            tensor.zero_()
    return state


def _brightness_by_convolution(model: PreTrainedModel) -> None:
    """Channel 0 carries the mean of the colours: 1×1 kernels, and a pooled average at the end."""
    state = _zero(model)
    state["resnet.embedder.embedder.convolution.weight"][0, :, 3, 3] = 1 / 3
    shortcut = state.get("resnet.encoder.stages.0.layers.0.shortcut.convolution.weight")
    if shortcut is not None:
        shortcut[0, 0, 0, 0] = 1
    state["classifier.1.weight"][-1, 0] = SLOPE
    state["classifier.1.bias"][-1] = -SLOPE / 2


def _brightness_by_patches(model: PreTrainedModel) -> None:
    """Each patch's token is (1, -1, 0, 0) times its brightness, centred at half; the norms leave its sign."""
    state = _zero(model)
    sign = torch.tensor([1.0, -1.0, 0.0, 0.0])
    for name, tensor in state.items():
        if name.endswith(("patch_embeddings.projection.weight", "patch_embedding.weight")):
            tensor.copy_(sign[:, None, None, None].expand_as(tensor))
        elif ".attention." in name or ".self_attn." in name:
            # no queries and keys: every token gets the mean of all
            if name.endswith((".value.weight", ".v_proj.weight", "output.dense.weight", ".out_proj.weight")) or (
                name.endswith(".o_proj.weight")
            ):
                tensor.copy_(torch.eye(len(tensor)))
        elif name == "classifier.weight":
            tensor[-1] = 4 * sign


def clip(*brightness: float, height: int = 12, width: int = 20) -> Tensor:
    """One frame of a single grey per value of 0..1."""
    return torch.stack([torch.full((height, width, 3), round(255 * b), dtype=torch.uint8) for b in brightness])


def expected(brightness: float) -> float:
    """The ResNet's score in closed form. Its two batch norms divide by √(1 + 1e-5)."""
    shown = round(255 * brightness) / 255 / (1 + 1e-5)
    return 1 / (1 + math.exp(-SLOPE * (shown - 0.5)))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("resnet"))


# Verdicts.


@pytest.mark.parametrize("kind", PROCESSORS)
def test_bright_is_flagged_and_dark_is_not(kind: str, tmp_path: Path) -> None:
    checker = load_checker(write(tmp_path, kind))
    bright = check(checker, clip(0.1, 0.2, 0.9))
    assert bright.flagged and bright.score > 0.9 and bright.frame == 2 and bright.frames_looked_at == 3
    dark = check(checker, clip(0.3, 0.1, 0.2))
    assert not dark.flagged and dark.score < 0.2 and dark.frames_looked_at == 3


@pytest.mark.parametrize("brightness", [0.0, 0.3, 0.5, 0.62, 1.0])
def test_the_score_is_the_classifiers_probability(resnet: Path, brightness: float) -> None:
    checker = load_checker(resnet)
    assert score(checker, clip(brightness)[0]) == pytest.approx(expected(brightness), abs=2e-5)


def test_of_a_clip_the_highest_score_counts(resnet: Path) -> None:
    verdict = check(load_checker(resnet), clip(0.1, 0.55, 0.2, 0.7, 0.3, 0.7))
    assert verdict.score == pytest.approx(expected(0.7), abs=2e-5)
    assert verdict.frame == 3


@pytest.mark.parametrize(("threshold", "flagged"), [(0.05, True), (0.8297, True), (0.83, False), (1.0, False)])
def test_the_threshold_decides(resnet: Path, threshold: float, flagged: bool) -> None:
    assert expected(0.7) == pytest.approx(0.82981, abs=1e-5)
    assert check(load_checker(resnet), clip(0.7), threshold=threshold).flagged is flagged


def test_a_score_at_the_threshold_is_flagged(resnet: Path) -> None:
    checker = load_checker(resnet)
    exactly = score(checker, clip(0.7)[0])
    assert check(checker, clip(0.7), threshold=exactly).flagged
    assert not check(checker, clip(0.7), threshold=math.nextafter(exactly, 1)).flagged


@pytest.mark.parametrize("threshold", [0, -1, 1.01, math.nan])
def test_a_threshold_outside_its_range_is_refused(resnet: Path, threshold: float) -> None:
    with pytest.raises(InputError, match="threshold"):
        check(load_checker(resnet), clip(0.5), threshold=threshold)


def test_it_works_in_inference_mode(resnet: Path) -> None:
    with torch.inference_mode():  # as ComfyUI runs its nodes
        assert check(load_checker(resnet), clip(0.9)).flagged


def test_weights_that_give_no_numbers_are_an_error_not_a_pass(
    resnet: Path, refusal: Callable[..., AbstractContextManager[None]]
) -> None:
    checker = load_checker(resnet)
    checker.model.classifier[1].bias.fill_(math.nan)
    with refusal(resnet, "no finite score"):
        check(checker, clip(0.9))


# Labels.


@pytest.mark.parametrize(
    ("labels", "unsafe"),
    [
        (("normal", "nsfw"), ("nsfw",)),
        (("SFW", "NSFW"), ("NSFW",)),
        (("unsafe", "safe"), ("unsafe",)),
        (("drawings", "hentai", "neutral", "porn", "sexy"), ("hentai", "porn", "sexy")),
        (
            ("Anime Picture", "Hentai", "Normal", "Pornography", "Enticing or Sensual"),
            ("Hentai", "Pornography", "Enticing or Sensual"),
        ),
        (("non-nude", "nude", "not_explicit", "No NSFW"), ("nude",)),
        (("Non-Violent", "Violent"), ("Violent",)),
        (("explicit_content", "essex"), ("explicit_content",)),
        (("safe", "not_safe", "safe, not nude"), ("not_safe",)),
        (("Safe for Work", "Not Safe for Work"), ("Not Safe for Work",)),
    ],
)
def test_labels_that_mean_unsafe(tmp_path: Path, labels: tuple[str, ...], unsafe: tuple[str, ...]) -> None:
    checker = load_checker(write(tmp_path, labels=labels))
    assert tuple(labels[i] for i in checker.unsafe) == unsafe


def test_the_probabilities_of_unsafe_labels_add_up(tmp_path: Path) -> None:
    # three labels, of which two at logit 0 and the last at SLOPE·(b − ½); the first and the last are unsafe
    checker = load_checker(write(tmp_path, labels=("porn", "neutral", "hentai")))
    grown = math.exp(SLOPE * (51 / 255 / (1 + 1e-5) - 0.5))
    assert score(checker, clip(0.2)[0]) == pytest.approx((1 + grown) / (2 + grown), abs=2e-5)


def test_independent_labels_are_judged_apart(tmp_path: Path) -> None:
    several = load_checker(write(tmp_path / "a", labels=("porn", "gore"), problem_type="multi_label_classification"))
    assert score(several, clip(0.7)[0]) == pytest.approx(expected(0.7), abs=2e-5)
    assert score(several, clip(0.2)[0]) == pytest.approx(0.5)  # the first label's logit is 0
    single = load_checker(write(tmp_path / "b", labels=("nsfw",)))
    assert score(single, clip(0.2)[0]) == pytest.approx(expected(0.2), abs=2e-5)


def test_labels_unknown_here_can_be_named(tmp_path: Path, refusal: Callable[..., AbstractContextManager[None]]) -> None:
    folder = write(tmp_path, labels=("neutral", "low", "high"))
    with refusal(folder / "config.json", "neutral, low, high", "id2label"):
        load_checker(folder)
    checker = load_checker(folder, unsafe={"high"})
    assert checker.unsafe == (2,)
    assert check(checker, clip(1.0)).flagged and not check(checker, clip(0.0)).flagged


def test_labels_that_are_all_unsafe_tell_nothing(
    tmp_path: Path, refusal: Callable[..., AbstractContextManager[None]]
) -> None:
    folder = write(tmp_path, labels=("porn", "hentai"))
    with refusal(folder / "config.json", "porn, hentai", "everything"):
        load_checker(folder)


# Which frames.


@pytest.mark.parametrize(
    ("total", "count", "indices"),
    [
        (1, 16, [0]),
        (2, 16, [0, 1]),
        (16, 16, list(range(16))),
        (9, 2, [0, 8]),
        (9, 3, [0, 4, 8]),
        (121, 16, [8 * i for i in range(16)]),
        (481, 16, [32 * i for i in range(16)]),
    ],
)
def test_sampled_frames(total: int, count: int, indices: list[int]) -> None:
    assert sampled(total, count) == indices


def test_sampled_frames_are_even_at_any_length() -> None:
    assert SAMPLES == 16
    for total in range(1, 500):
        frames = sampled(total)
        assert len(set(frames)) == len(frames) == min(total, 16)
        assert frames[0] == 0 and frames[-1] == total - 1
        gaps = {b - a for a, b in pairwise(frames)}
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("total", "count"), [(0, 16), (-1, 16), (9, 1), (9, 0)])
def test_no_frames_are_no_sample(total: int, count: int) -> None:
    with pytest.raises(ValueError, match="frames"):
        sampled(total, count)


# Streaming.


def chunks(frames: Tensor, *sizes: int) -> Iterator[Tensor]:
    yield from frames.split(list(sizes))


@pytest.mark.parametrize("sizes", [(25,), (1,) * 25, (8, 8, 8, 1), (24, 1), (3, 0, 22)])
def test_chunks_pass_unchanged_and_the_verdict_does_not_depend_on_them(resnet: Path, sizes: tuple[int, ...]) -> None:
    checker = load_checker(resnet)
    frames = clip(*(0.02 * i for i in range(24)), 0.1)
    watch = Watch(checker, 25, count=5)
    passed = list(watch(chunks(frames, *sizes)))
    assert [len(chunk) for chunk in passed] == list(sizes)
    assert torch.equal(torch.cat(passed), frames)
    assert watch.verdict == check(checker, frames, count=5)
    assert list(watch.scores) == [0, 6, 12, 18, 24]
    assert watch.verdict.frame == 18 and watch.verdict.score == pytest.approx(expected(0.36), abs=2e-5)


def test_a_chunk_is_asked_for_only_when_the_one_before_it_was_taken(resnet: Path) -> None:
    made: list[int] = []

    def source() -> Iterator[Tensor]:
        for i in range(5):
            made.append(i)
            yield clip(0.1, 0.1)

    watch = Watch(load_checker(resnet), 10)
    taken = watch(source())
    for i in range(5):
        next(taken)
        assert made == list(range(i + 1))


def test_a_flag_is_up_before_its_chunk_goes_on(resnet: Path) -> None:
    watch = Watch(load_checker(resnet), 6)
    seen = [watch.flagged for _ in watch(chunks(clip(0.1, 0.1, 0.1, 0.9, 0.1, 0.1), 2, 2, 2))]
    assert seen == [False, True, True]


def test_there_is_no_verdict_on_half_a_clip(resnet: Path) -> None:
    watch = Watch(load_checker(resnet), 4)
    with pytest.raises(RuntimeError, match="not ended"):
        _ = watch.verdict
    next(watch(chunks(clip(0.1, 0.1, 0.1, 0.1), 2, 2)))
    with pytest.raises(RuntimeError, match="2 of 4"):
        _ = watch.verdict


@pytest.mark.parametrize("total", [3, 5])
def test_another_number_of_frames_than_announced_is_no_verdict(resnet: Path, total: int) -> None:
    watch = Watch(load_checker(resnet), total)
    with pytest.raises(ValueError, match="has 4 frames, not"):
        list(watch([clip(0.1, 0.1, 0.1, 0.9)]))
    with pytest.raises(RuntimeError):
        _ = watch.verdict


def test_blank_frames_are_black() -> None:
    frames = clip(0.3, 0.9)
    black = blank(frames)
    assert black.shape == frames.shape and black.dtype == frames.dtype and black.max() == 0
    assert frames.max() > 0


# Folders.


def test_the_first_model_folder_is_found(tmp_path: Path) -> None:
    root = tmp_path / "safety_checker"
    assert find_checker(root) is None
    (root / "empty").mkdir(parents=True)
    assert find_checker(root) is None
    for name in ("b", "c/d", "a/deep"):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").touch()
    assert find_checker(root) == root / "b"
    (root / "B2").mkdir()
    (root / "B2" / "config.json").touch()
    assert find_checker(root) == root / "B2"
    (root / "config.json").touch()
    assert find_checker(root) == root


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(
    tmp_path: Path, name: str, refusal: Callable[..., AbstractContextManager[None]]
) -> None:
    folder = write(tmp_path)
    (folder / name).rename(folder / f"{name}.part")
    with refusal(folder / name, "not found"):
        load_checker(folder)


def test_pickled_weights_are_not_opened(tmp_path: Path, refusal: Callable[..., AbstractContextManager[None]]) -> None:
    folder = write(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with refusal(folder / "model.safetensors", "safetensors"):
        load_checker(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", "cannot be loaded"),
        ("config.json", b'{"model_type": "nothing"}', "cannot be loaded"),
        ("config.json", b'{"model_type": "bert"}', "cannot be loaded"),
        ("preprocessor_config.json", b"[]", "cannot be loaded"),
        ("model.safetensors", b"\x00" * 20, "has only zeros at its beginning; get the whole image classifier again"),
        ("model.safetensors", b"", "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, words: str, refusal: Callable[..., AbstractContextManager[None]]
) -> None:
    folder = write(tmp_path)
    (folder / name).write_bytes(content)
    with refusal(folder, words):
        load_checker(folder)


def test_truncated_weights_are_one_sentence(
    tmp_path: Path, refusal: Callable[..., AbstractContextManager[None]]
) -> None:
    folder = write(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-8])
    with refusal(folder, "cannot be loaded"):
        load_checker(folder)


def test_a_backbone_without_its_head_is_no_classifier(
    tmp_path: Path, refusal: Callable[..., AbstractContextManager[None]]
) -> None:
    folder = write(tmp_path, "vit")
    config = (folder / "config.json").read_text()
    ViTModel(ViTConfig.from_pretrained(folder), add_pooling_layer=False).save_pretrained(folder)
    (folder / "config.json").write_text(config)
    with refusal(folder, "classifier.", "not a trained"):
        load_checker(folder)


def test_a_processor_of_another_size_is_told_before_anything_is_made(
    tmp_path: Path, refusal: Callable[..., AbstractContextManager[None]]
) -> None:
    folder = write(tmp_path, "vit")
    config = folder / "preprocessor_config.json"
    config.write_text(config.read_text().replace('"height": 8', '"height": 16'))
    with refusal(folder, "does not fit its model"):
        load_checker(folder)


def test_code_in_the_folder_is_not_run(tmp_path: Path, refusal: Callable[..., AbstractContextManager[None]]) -> None:
    folder = write(tmp_path)
    ran = folder / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with refusal(folder, "cannot be loaded"):
        load_checker(folder)
    assert not ran.exists()


def test_weights_in_shards_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path)
    model = ResNetForImageClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="1KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert check(load_checker(folder), clip(0.9)).score == pytest.approx(expected(0.9), abs=2e-5)
