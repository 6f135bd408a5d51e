"""Parts in files of their own: each found where it is, named where it lacks, known without its prefix, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx.prompt.gemma import check_gemma
from a2v.ltx.weights.checkpoint import Checkpoint, load_checkpoint
from a2v.tests import layouts
from a2v.tests.tiny import TinyFiles
from safetensors.torch import save_file
from torch import nn

PARTS = ("transformer", "connectors", "video_vae", "audio_vae", "vocoder")


@pytest.fixture(scope="module")
def split(tiny_default: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return layouts.write_split(tiny_default.checkpoint, tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def whole(tiny_default: TinyFiles) -> Checkpoint:
    return load_checkpoint(tiny_default.checkpoint)


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert dict(ours.config).items() >= {k: v for k, v in theirs.config.items() if k[0] != "_"}.items()


def test_every_part_in_its_own_file(split: dict[str, Path], whole: Checkpoint) -> None:
    opened = load_checkpoint(
        split["transformer"],
        video_vae=split["video_vae"],
        audio_vae=split["audio_vae"],
        connectors=split["connectors"],
    )
    opened.check()
    for part in PARTS:
        assert_same(getattr(opened, part)(), getattr(whole, part)())
    assert opened.blueprint().state_dict().keys() == whole.transformer().state_dict().keys()
    name = "transformer_blocks.1.ff.net.2.weight"
    assert torch.equal(opened.transformer_weight(name), whole.transformer_weight(name))


def test_connectors_of_two_files(split: dict[str, Path], whole: Checkpoint) -> None:
    """Bare names in the transformer's file; the text projection has a file of its own."""
    opened = load_checkpoint(split["with_connectors"], connectors=split["projection"])
    assert_same(opened.connectors(), whole.connectors())
    assert_same(opened.transformer(), whole.transformer())


def test_gguf_with_parts(tiny_default: TinyFiles, split: dict[str, Path], whole: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "LTX-2.3-dev-Q8_0.gguf"
    layouts.write_gguf(tiny_default.checkpoint, path, "BF16")
    opened = load_checkpoint(path, video_vae=split["video_vae"], connectors=tiny_default.checkpoint)
    for part in ("transformer", "connectors", "video_vae"):
        assert_same(getattr(opened, part)(torch.bfloat16), getattr(whole, part)())


def test_a_named_file_goes_before_the_checkpoint(tiny_default: TinyFiles, tmp_path: Path, whole: Checkpoint) -> None:
    tensors, metadata = layouts.read(tiny_default.checkpoint)
    vae = {k: t + 1 for k, t in tensors.items() if k.startswith("vae.")}
    save_file(vae, tmp_path / "vae.safetensors", metadata)
    opened = load_checkpoint(tiny_default.checkpoint, video_vae=tmp_path / "vae.safetensors")
    name = "decoder.conv_in.conv.weight"
    ours, theirs = (opened_.video_vae().state_dict()[name] for opened_ in (opened, whole))
    assert torch.equal(ours, theirs + 1)
    assert_same(opened.audio_vae(), whole.audio_vae())


def test_a_folder_with_a_file(
    tiny_default: TinyFiles, split: dict[str, Path], whole: Checkpoint, tmp_path: Path
) -> None:
    whole.transformer().save_pretrained(tmp_path / "transformer")
    opened = load_checkpoint(tmp_path, video_vae=split["video_vae"])
    assert_same(opened.video_vae(), whole.video_vae())
    assert opened.transformer().state_dict().keys() == whole.transformer().state_dict().keys()


@pytest.mark.parametrize("other", ["diffusion_pytorch_model.fp16", "a_copy", "z_copy"])
def test_a_folder_with_a_second_copy(whole: Checkpoint, tmp_path: Path, other: str) -> None:
    """What was loaded is also what removing a LoRA restores."""
    folder = tmp_path / "transformer"
    whole.transformer().save_pretrained(folder)
    tensors = layouts.read(folder / "diffusion_pytorch_model.safetensors")[0]
    save_file({name: tensor.half() + 1 for name, tensor in tensors.items()}, folder / f"{other}.safetensors")
    opened, name = load_checkpoint(tmp_path), "proj_out.weight"
    assert torch.equal(opened.transformer().state_dict()[name], tensors[name])
    assert torch.equal(opened.transformer_weight(name), tensors[name])


def test_a_folder_with_shards_and_a_whole_file(whole: Checkpoint, tmp_path: Path) -> None:
    """As diffusers: the index counts. Without it, the whole file counts."""
    folder = tmp_path / "transformer"
    whole.transformer().save_pretrained(folder, max_shard_size="500KB")
    index, stem = folder / "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model"
    assert index.is_file()
    copy = {name: tensor + 1 for name, tensor in whole.transformer().state_dict().items()}
    save_file(copy, folder / f"{stem}.safetensors")
    name = "proj_out.weight"
    for expected in (whole.transformer_weight(name), copy[name]):
        opened = load_checkpoint(tmp_path)
        assert torch.equal(opened.transformer().state_dict()[name], expected)
        assert torch.equal(opened.transformer_weight(name), expected)
        index.unlink(missing_ok=True)


def test_copies_of_other_names_are_read_alike(whole: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    whole.transformer().save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = layouts.read(path)[0]
    path.rename(folder / "a.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "b.safetensors")
    opened, name = load_checkpoint(tmp_path), "proj_out.weight"
    assert torch.equal(opened.transformer().state_dict()[name], opened.transformer_weight(name))


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "model.", ""])
def test_prefixes_of_the_transformer(tiny_default: TinyFiles, tmp_path: Path, whole: Checkpoint, prefix: str) -> None:
    tensors, metadata = layouts.read(tiny_default.checkpoint)
    old = layouts.PREFIX
    tensors = {prefix + k.removeprefix(old): t for k, t in tensors.items() if k.startswith(old)}
    save_file(tensors, tmp_path / "t.safetensors", {"config": metadata["config"]})
    assert_same(load_checkpoint(tmp_path / "t.safetensors").transformer(), whole.transformer())


@pytest.mark.parametrize("bare", ["vae.", "audio_vae.", "vocoder."])
def test_prefixes_of_the_others(tiny_default: TinyFiles, tmp_path: Path, whole: Checkpoint, bare: str) -> None:
    tensors, metadata = layouts.read(tiny_default.checkpoint)
    path, argument = tmp_path / "part.safetensors", "video_vae" if bare == "vae." else "audio_vae"
    save_file({k.removeprefix(bare): t for k, t in tensors.items() if k.startswith(bare)}, path, metadata)
    part = {"vae.": "video_vae", "audio_vae.": "audio_vae", "vocoder.": "vocoder"}[bare]
    if bare == "vocoder.":  # comes with the audio VAE
        save_file({k: t for k, t in tensors.items() if k.startswith(("audio_vae.", bare))}, path, metadata)
    assert_same(getattr(load_checkpoint(tiny_default.checkpoint, **{argument: path}), part)(), getattr(whole, part)())


def test_a_checkpoint_that_comfyui_saved(tiny_default: TinyFiles, tmp_path: Path, whole: Checkpoint) -> None:
    """Save Checkpoint puts the text encoder with the projection under a prefix and leaves out the audio VAE."""
    tensors, metadata = layouts.read(tiny_default.checkpoint)
    kept = {k: t for k, t in tensors.items() if not k.startswith(("audio_vae.", "vocoder."))}
    saved = {f"text_encoders.{k}" if k.startswith(layouts.PROJECTION) else k: t for k, t in kept.items()}
    path = tmp_path / "merged.safetensors"
    save_file({**saved, "text_encoders.gemma3_12b.transformer.model.norm.weight": torch.ones(4)}, path, metadata)
    opened = load_checkpoint(path, audio_vae=tiny_default.checkpoint)
    opened.check()
    for part in PARTS:
        assert_same(getattr(opened, part)(), getattr(whole, part)())


MISSING = {
    "video_vae": ("video VAE", "LTX23_video_vae_bf16.safetensors"),
    "audio_vae": ("audio VAE", "LTX23_audio_vae_bf16.safetensors"),
    "connectors": ("text connectors", "ltx-2.3_text_projection_bf16.safetensors"),
}


@pytest.mark.parametrize("lacking", MISSING)
@pytest.mark.parametrize("how", ["check", "load"])
def test_what_lacks_is_named(split: dict[str, Path], lacking: str, how: str, refusal: Callable) -> None:
    named = {argument: split[argument] for argument in MISSING if argument != lacking}
    opened = load_checkpoint(split["transformer"], **named)
    with refusal(split["transformer"], *MISSING[lacking], lacking, "or the whole file ltx-2.3-22b-dev.safetensors."):
        getattr(opened, "check" if how == "check" else lacking)()


def test_half_of_the_connectors(split: dict[str, Path], refusal: Callable) -> None:
    for path, other in ((split["with_connectors"], None), (split["transformer"], split["projection"])):
        with refusal(path, "text connectors"):
            load_checkpoint(path, connectors=other).connectors()


def test_a_file_of_another_part(tiny_default: TinyFiles, split: dict[str, Path], refusal: Callable) -> None:
    for argument in MISSING:
        wrong = "audio_vae" if argument == "video_vae" else "video_vae"
        with refusal(split[wrong], *MISSING[argument]):
            load_checkpoint(tiny_default.checkpoint, **{argument: split[wrong]})
    for part in ("video_vae", "projection"):
        with refusal(split[part], "no LTX transformer"):
            load_checkpoint(split[part])


def test_a_part_of_the_other_version_by_its_name(
    tiny_default: TinyFiles, split: dict[str, Path], tmp_path: Path, refusal: Callable
) -> None:
    """Repacks often have no metadata."""
    tensors, metadata = layouts.read(split["video_vae"])
    for name, wrong in (("ltx-2.5-video-vae-conv-bf16", True), ("ltx-2.3-video-vae", False), ("ltx-2.1-vae", False)):
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path, {"config": metadata["config"]})
        if wrong:
            with refusal(path, "is of LTX version 2.5", MISSING["video_vae"][1]):
                load_checkpoint(tiny_default.checkpoint, video_vae=path)
        else:
            load_checkpoint(tiny_default.checkpoint, video_vae=path)


def test_without_metadata_the_published_model_is_meant(
    split: dict[str, Path], tmp_path: Path, refusal: Callable
) -> None:
    """Splits often lack the configuration: these shapes are then not the published ones, and that is said."""
    for part in ("video_vae", "transformer"):
        save_file(layouts.read(split[part])[0], tmp_path / f"{part}.safetensors")
    vae = tmp_path / "video_vae.safetensors"
    with refusal(vae, "video VAE"):
        load_checkpoint(tmp_path / "transformer.safetensors", video_vae=vae).video_vae()
    load_checkpoint(split["transformer"], video_vae=vae).video_vae()  # the other file's configuration has an entry


def test_a_transformer_without_metadata_is_of_the_version_of_its_tensors(
    split: dict[str, Path], tiny_default: TinyFiles, tmp_path: Path
) -> None:
    """Repacks have neither model_version nor a configuration, and 2.3's Gemma goes with such a file."""
    tensors, metadata = layouts.read(split["transformer"])
    for said in ({}, {"config": metadata["config"]}):
        save_file(tensors, tmp_path / "t.safetensors", said)
        opened = load_checkpoint(tmp_path / "t.safetensors")
        assert opened.version == "2.3"
        check_gemma(tiny_default.gemma, opened)


def test_the_wrong_configuration_is_not_taken(split: dict[str, Path], tmp_path: Path) -> None:
    """A part's configuration comes from the file that has the part, if that says anything of it."""
    tensors, metadata = layouts.read(split["transformer"])
    config = json.loads(metadata["config"])
    config["vae"]["decoder_base_channels"] = 999
    save_file(tensors, tmp_path / "t.safetensors", {"config": json.dumps(config)})
    vae = load_checkpoint(tmp_path / "t.safetensors", video_vae=split["video_vae"]).video_vae()
    assert vae.config.decoder_block_out_channels[0] == 32
