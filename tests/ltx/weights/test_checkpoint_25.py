"""LTX-2.5's files: each part is known by what it holds, and what does not belong together is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from a2v.ltx import versions
from a2v.ltx.errors import InputError
from a2v.ltx.models import MODELS, V25, named_version
from a2v.ltx.prompt.gemma import check_gemma, load_gemma
from a2v.ltx.weights.checkpoint import Checkpoint, load_checkpoint
from a2v.ltx.weights.lora_file import Lora, load_lora
from a2v.tests.tiny import TinyFiles, metadata_of
from a2v.tests.tiny25 import GEMMA_VERSION, NONE_OF_THEM, Decoder, Tiny25Files, write_tiny25
from safetensors.torch import load_file, save_file
from torch import nn

PREFIX = "model.diffusion_model."
PARTS = ("transformer", "connectors", "video_vae", "video_decoder", "video_encoder", "audio_vae", "vocoder")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Tiny25Files:
    return write_tiny25(tmp_path_factory.mktemp("tiny25"))


@pytest.fixture(scope="module")
def opened(files: Tiny25Files) -> Checkpoint:
    return load_checkpoint(files.transformer, **files.parts)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Tiny25Files:
    return write_tiny25(tmp_path_factory.mktemp("static"), switches=NONE_OF_THEM)


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    expected = theirs.state_dict()
    return ours.state_dict().keys() == expected.keys() and all(
        torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items()
    )


def test_every_part_is_found(opened: Checkpoint, files: Tiny25Files) -> None:
    """The numbers of the parts are in the golden files' tests; here, what each file's tensors become."""
    opened.check()
    assert opened.generation is V25 and opened.crf == 18 and opened.gemma_version == GEMMA_VERSION
    stored = load_file(files.transformer)
    model = opened.transformer()
    assert torch.equal(model.keyframes_abs_pos_embedding, stored[f"{PREFIX}keyframes_abs_pos_embedding"])
    ff = "transformer_blocks.1.ff.net.2.weight"
    assert torch.equal(model.get_parameter(ff), stored[PREFIX + ff])
    assert model.transformer_blocks[0].ff.net[2].bias is None
    assert model.transformer_blocks[0].audio_ff.net[2].bias is not None
    assert torch.equal(opened.transformer_weight(ff), stored[PREFIX + ff])
    projection = load_file(files.text_encoder)["text_embedding_projection.audio_aggregate_embed.weight"]
    assert torch.equal(opened.connectors().audio_text_proj_in.weight, projection)


def test_switches_off(static: Tiny25Files) -> None:
    checkpoint = load_checkpoint(static.transformer, **static.parts)
    model, connectors = checkpoint.transformer(), checkpoint.connectors()
    assert getattr(model, "prompt_adaln", None) is None and not hasattr(model, "keyframes_abs_pos_embedding")
    biases = [name for name in model.state_dict() if ".ff." in name and name.endswith(".bias")]
    assert not biases
    assert not [name for name in connectors.state_dict() if ".ff." in name and name.endswith(".bias")]


@pytest.mark.parametrize("strip", ["", PREFIX, "model."])
def test_without_metadata_the_tensors_tell(files: Tiny25Files, static: Tiny25Files, tmp_path: Path, strip: str) -> None:
    """Repacks have no metadata: sizes and switches are measured, what tensors cannot tell is as published."""
    for source in (files, static):
        path, parts = tmp_path / "bare.safetensors", source.parts
        save_file({key.removeprefix(strip): tensor for key, tensor in load_file(source.transformer).items()}, path)
        bare, whole = load_checkpoint(path, **parts), load_checkpoint(source.transformer, **parts)
        assert bare.generation is V25
        assert bare.blueprint().config.cross_attn_timestep_scale_multiplier == 1000
        assert bare.blueprint().config.rope_double_precision is True
        assert same(bare.transformer(), whole.transformer())
        assert same(bare.connectors(), whole.connectors())


def test_a_vector_without_its_first_axis(files: Tiny25Files, tmp_path: Path, opened: Checkpoint) -> None:
    """GGUF files have it as [D]."""
    tensors = load_file(files.transformer)
    key = f"{PREFIX}keyframes_abs_pos_embedding"
    save_file({**tensors, key: tensors[key][0]}, tmp_path / "t.safetensors")
    assert same(load_checkpoint(tmp_path / "t.safetensors").transformer(), opened.transformer())


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_the_video_vae_is_known_by_its_tensors(
    files: Tiny25Files, tmp_path: Path, opened: Checkpoint, prefix: str
) -> None:
    """Bare or prefixed; the image's compression is by the version of its file, and 2.3's without one."""
    path = tmp_path / "vae.safetensors"
    save_file({prefix + key: tensor for key, tensor in load_file(files.video_vae).items()}, path)
    one = load_checkpoint(files.transformer, video_vae=path)
    assert one.crf == 33
    with pytest.raises(InputError, match=r"has no|lacks|describes|wrong shape"):
        one.video_vae()  # as published, which this is not
    save_file(load_file(path), tmp_path / "told.safetensors", metadata(files.video_vae))
    told = load_checkpoint(files.transformer, video_vae=tmp_path / "told.safetensors")
    assert told.crf == 18
    assert same(told.video_vae(), opened.video_vae())


def metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_diffusion_vae(files: Tiny25Files, opened: Checkpoint) -> None:
    """The same encoder and statistics as the convolutional one's, and the other decoder."""
    other = load_checkpoint(files.transformer, **{**files.parts, "video_vae": files.diffusion_vae})
    other.check()
    assert other.crf == 18
    assert same(other.video_encoder(), opened.video_encoder())
    assert same(other.video_statistics(), opened.video_statistics())
    decoder, stored = other.video_decoder(), load_file(files.diffusion_vae)
    assert type(decoder).__name__ == "LTX2VideoDiffusionDecoderModel"
    fused = stored["decoder.det_stages.1.0.attn.qkv.weight"]
    attention = decoder.decoder.det_stages[1][0].attn
    assert torch.equal(torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]), fused)
    assert torch.equal(decoder.latents_mean, stored["per_channel_statistics.mean-of-means"])


def test_a_vae_of_other_blocks_is_named_and_not_the_transformer(
    files: Tiny25Files, tmp_path: Path, refusal: Callable
) -> None:
    """Others publish faster decoders, which have blocks of their own."""
    path = tmp_path / "vae.safetensors"
    tensors, said = load_file(files.video_vae), metadata(files.video_vae)
    config = json.loads(said["config"])
    config["vae"]["decoder_blocks"].insert(4, ["res_x_y", {"out_channels": 256}])
    save_file(tensors, path, {**said, "config": json.dumps(config)})
    with refusal(path, "blocks that LTX 2.3 and 2.5 do not have", f"use {MODELS['video-vae-2.5'].name}."):
        load_checkpoint(files.transformer, **{**files.parts, "video_vae": path}).video_vae()
    tensors.pop("decoder.conv_in.conv.weight")
    save_file(tensors, path, said)
    with refusal(path, "lacks", f"use {MODELS['video-vae-2.5'].name}."):
        load_checkpoint(files.transformer, **{**files.parts, "video_vae": path}).video_vae()


def test_gates_are_folded(tmp_path: Path) -> None:
    """Some files have a gate beside a layer, which multiplies its rows."""
    files = write_tiny25(tmp_path, decoder=Decoder(gated=True))
    opened = load_checkpoint(files.transformer, **{**files.parts, "video_vae": files.diffusion_vae})
    decoder, stored = opened.video_decoder(torch.float32), load_file(files.diffusion_vae)
    block, name = decoder.decoder.diff_blocks[1], "decoder.diff_blocks.1."
    for layer, own, gate in (
        (block.attn.to_out[0], "attn.proj", "gate_msa"),
        (block.mlp.w_down, "mlp.w_down", "gate_mlp"),
        (block.context_proj, "context_proj", "gate_ctx"),
    ):
        expected = stored[f"{name}{own}.weight"].float() * stored[f"{name}{gate}"].float()[:, None]
        torch.testing.assert_close(layer.weight, expected.to(torch.bfloat16).float(), rtol=1e-2, atol=0)


def test_gates_in_fp8_are_folded(tmp_path: Path) -> None:
    """A file that was cast whole."""
    files = write_tiny25(tmp_path, decoder=Decoder(gated=True))
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(files.diffusion_vae).items()}
    save_file(stored, tmp_path / "fp8.safetensors", metadata_of(files.diffusion_vae))
    opened = load_checkpoint(files.transformer, **{**files.parts, "video_vae": tmp_path / "fp8.safetensors"})
    layer, name = opened.video_decoder(torch.float32).decoder.diff_blocks[1].mlp.w_down, "decoder.diff_blocks.1."
    expected = stored[f"{name}mlp.w_down.weight"].float() * stored[f"{name}gate_mlp"].float()[:, None]
    torch.testing.assert_close(layer.weight, expected, rtol=0, atol=0)


# What does not belong together.


def test_a_part_is_missing(files: Tiny25Files, refusal: Callable) -> None:
    for part, words in {
        "video_vae": ("video VAE", MODELS["video-vae-2.5"].name),
        "audio_vae": ("audio VAE", MODELS["audio-vae-2.5"].name),
        "text_encoder": ("text projection", MODELS["text-encoder-2.5"].name),
    }.items():
        with refusal(files.transformer, *words):
            load_checkpoint(files.transformer, **{k: v for k, v in files.parts.items() if k != part}).check()


def test_the_connectors_of_a_transformer_without_them_come_from_another_one(
    files: Tiny25Files, opened: Checkpoint, tmp_path: Path, refusal: Callable
) -> None:
    """GGUF files may lack them. The text encoder's file has only the projection, so it is not the remedy."""
    alone = tmp_path / "alone.safetensors"
    tensors = load_file(files.transformer)
    save_file({k: t for k, t in tensors.items() if "embeddings_connector" not in k}, alone, metadata(files.transformer))
    with refusal(alone, "text connectors", MODELS["dev-2.5"].name):
        load_checkpoint(alone, **files.parts).check()
    with refusal(alone, MODELS["dev-2.5"].name):
        load_checkpoint(alone, **files.parts, connectors=files.text_encoder).check()
    assert same(load_checkpoint(alone, **files.parts, connectors=files.transformer).connectors(), opened.connectors())


def test_a_gguf_text_encoder_is_refused_with_the_file_of_the_version(
    opened: Checkpoint, tiny_default: TinyFiles, tmp_path: Path
) -> None:
    path = tmp_path / "gemma.gguf"
    path.write_bytes(b"GGUF")
    old, new = "gemma_3_12B_it_fp4_mixed.safetensors", MODELS["text-encoder-2.5"].name
    for checkpoint, wanted in ((opened, {new}), (load_checkpoint(tiny_default.checkpoint), {old}), (None, {old, new})):
        with pytest.raises(InputError, match=r"gemma\.gguf: a GGUF text encoder is not supported") as raised:
            check_gemma(path, checkpoint)
        assert {name for name in (old, new) if name in str(raised.value)} == wanted


def test_files_of_both_versions(files: Tiny25Files, tiny_default: TinyFiles, tmp_path: Path, refusal: Callable) -> None:
    old = tmp_path / "vae.safetensors"
    tensors, said = load_file(tiny_default.checkpoint), metadata(tiny_default.checkpoint)
    save_file({k: t for k, t in tensors.items() if k.startswith("vae.")}, old, said)
    with refusal(old, str(files.transformer), "2.3.0", "2.5.0"):
        load_checkpoint(files.transformer, video_vae=old)
    with refusal(files.audio_vae, str(tiny_default.checkpoint), "2.3.0", "2.5.0"):
        load_checkpoint(tiny_default.checkpoint, audio_vae=files.audio_vae)


def test_text_encoders_of_the_other_version(
    files: Tiny25Files, opened: Checkpoint, tiny_default: TinyFiles, refusal: Callable
) -> None:
    with refusal(tiny_default.gemma, "Gemma 3", str(files.transformer), MODELS["text-encoder-2.5"].name):
        check_gemma(tiny_default.gemma, opened)
    with refusal(files.text_encoder, "Gemma 4", str(tiny_default.checkpoint), "gemma-3-12b"):
        check_gemma(files.text_encoder, load_checkpoint(tiny_default.checkpoint))


def changed(source: Path, target: Path, change: Callable[[dict, dict], None]) -> Path:
    tensors, said = load_file(source), metadata(source)
    change(tensors, said)
    save_file(tensors, target, said)
    return target


def test_a_stock_gemma_4(files: Tiny25Files, opened: Checkpoint, tmp_path: Path, refusal: Callable) -> None:
    def without_projection(tensors: dict, _: dict) -> None:
        for key in [key for key in tensors if key.startswith("text_embedding_projection.")]:
            del tensors[key]

    path = changed(files.text_encoder, tmp_path / "stock.safetensors", without_projection)
    with refusal(path, "stock Gemma 4", MODELS["text-encoder-2.5"].name):
        check_gemma(path, opened)


def test_another_version_of_gemma(files: Tiny25Files, opened: Checkpoint, tmp_path: Path, refusal: Callable) -> None:
    def newer(_: dict, said: dict) -> None:
        config = json.loads(said["gemma_config"])
        said["gemma_config"] = json.dumps({**config, "gemma_version": "gemma4-12b-ltx-v9"})

    path = changed(files.text_encoder, tmp_path / "newer.safetensors", newer)
    with refusal(path, "gemma4-12b-ltx-v9", GEMMA_VERSION, str(files.transformer)):
        check_gemma(path, opened)


def test_a_text_encoder_without_a_configuration(files: Tiny25Files, opened: Checkpoint, tmp_path: Path) -> None:
    """Repacks: its sizes are measured."""
    path = changed(files.text_encoder, tmp_path / "bare.safetensors", lambda _, said: said.pop("gemma_config"))
    check_gemma(path, opened)
    assert same(load_gemma(path).model, load_gemma(files.text_encoder).model)


@pytest.mark.parametrize("lacking", ["tokenizer_json", "model.layers.2.self_attn.k_proj.weight"])
def test_a_text_encoder_that_lacks_something(
    files: Tiny25Files, tmp_path: Path, lacking: str, refusal: Callable
) -> None:
    path = changed(files.text_encoder, tmp_path / "lacking.safetensors", lambda tensors, _: tensors.pop(lacking))
    with refusal(path, MODELS["text-encoder-2.5"].name):
        load_gemma(path)


def test_libraries_that_are_too_old(files: Tiny25Files, monkeypatch: pytest.MonkeyPatch, refusal: Callable) -> None:
    monkeypatch.setattr(versions, "NEEDED_25", {"diffusers": ">=99.0", "transformers": ">=99.0"})
    with refusal(files.transformer, "diffusers", "transformers", "99.0", "pip install"):
        load_checkpoint(files.transformer)


# LoRAs.


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("ltx-2.5-22b-distilled-lora-450-bf16.safetensors", "2.5"),
        ("ltx-2.3-22b-distilled-lora-384-1.1.safetensors", "2.3"),
        ("LTX2.3_style.safetensors", "2.3"),
        ("my_ltx2_5_face.safetensors", "2.5"),
        ("LTX23_video_vae_bf16.safetensors", "2.3"),
        ("LTX25.safetensors", "2.5"),
        ("ltx-22b-style.safetensors", ""),
        ("ltx25fps.safetensors", ""),
        ("ltx-219.safetensors", ""),
        ("ltx-2-19b-lora-camera-control-static.safetensors", ""),
        ("ltxv-13b-0.9.8.safetensors", ""),
        ("style.safetensors", ""),
    ],
)
def test_versions_in_names(name: str, version: str) -> None:
    assert named_version(name) == version


@pytest.mark.parametrize("told", ["metadata", "name"])
def test_a_lora_of_the_newer_version(tiny_default: TinyFiles, tmp_path: Path, refusal: Callable, told: str) -> None:
    """All layers have its shapes, so only its metadata or its name tell."""
    path = tmp_path / ("style.safetensors" if told == "metadata" else "ltx-2.5-style.safetensors")
    save_file(load_file(tiny_default.distilled_lora), path, {"model_version": "2.5.0"} if told == "metadata" else None)
    loaded = load_lora(path)
    with refusal(path, "LTX-2.5", "checkpoint.safetensors is LTX-2.3"):
        loaded.check_version("checkpoint.safetensors", "2.3.0")
    assert loaded.check_version("checkpoint.safetensors", "2.5.0") == ""


@pytest.mark.parametrize("told", ["metadata", "name"])
def test_a_lora_of_the_older_version(tiny_default: TinyFiles, tmp_path: Path, refusal: Callable, told: str) -> None:
    """By its makers most of LTX-2.3's work with LTX-2.5; the others and a distilled one do not."""

    def named(name: str) -> Lora:
        path = tmp_path / f"{'' if told == 'metadata' else 'ltx-2.3-'}{name}.safetensors"
        version = {"model_version": "2.3.0"} if told == "metadata" else None
        save_file(load_file(tiny_default.distilled_lora), path, version)
        return load_lora(path, referenced=True)

    for name in ("my-relight-style", "prelight", "undistilled-look"):  # other people's
        assert "most such LoRAs work" in named(name).check_version("checkpoint.safetensors", "2.5.0")
    usual = named("ic-lora-union-control")
    assert usual.check_version("checkpoint.safetensors", "2.5.0") == (
        f"{usual.path.name}: was made for LTX-2.3; most such LoRAs work with LTX-2.5, and some do not"
    )
    assert usual.check_version("checkpoint.safetensors", "2.3.0") == ""
    for name in ("ic-lora-dubit-0.9", "ic-lora-lipdub-0.9", "ic-lora-relight-1.0", "22b-distilled-lora-384"):
        with refusal(named(name).path, "LTX-2.3", "checkpoint.safetensors is LTX-2.5"):
            named(name).check_version("checkpoint.safetensors", "2.5.0")


def test_the_camera_loras_are_of_an_earlier_version(tiny_default: TinyFiles, tmp_path: Path) -> None:
    path = tmp_path / "ltx-2-19b-lora-camera-control-static.safetensors"
    save_file(load_file(tiny_default.camera_lora), path)
    for version in ("2.3.0", "2.5.0"):
        load_lora(path).check_version("checkpoint", version)


def test_an_upscaler_of_the_other_version(
    files: Tiny25Files, opened: Checkpoint, tmp_path: Path, refusal: Callable
) -> None:
    for name, said in (("ltx-2.3-spatial-upscaler-x2-1.0.safetensors", None), ("u.safetensors", "2.3.0")):
        path = tmp_path / name
        save_file(load_file(files.upscaler), path, {"model_version": said} if said else None)
        with refusal(path, "LTX-2.3", "LTX-2.5", MODELS[V25.upscaler].name):
            opened.check_upscaler(path)
    opened.check_upscaler(files.upscaler)
