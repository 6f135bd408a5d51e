"""Prompt encoding against the official pipeline's tensors and against ltx-core's feature extractor and connectors."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from a2v.ltx.diffusion.conditioning import TEXT_LENGTH, TextContext
from a2v.ltx.errors import InputError
from a2v.ltx.prompt import text as module
from a2v.ltx.prompt.gemma import Gemma, load_gemma, read_model
from a2v.ltx.prompt.text import encode_text, hidden_states, tokenize
from a2v.ltx.weights.checkpoint import load_checkpoint
from a2v.tests.ltx.goldens import relative
from a2v.tests.nodes.devices import LACKS, simulated
from a2v.tests.tiny import TinyFiles, write_tiny
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PROMPTS = ("A woman speaks to the camera", "", "  héllo wörld 你好\n", "<start_of_turn>talking " * 40, "a" * 3000)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    return write_tiny(tmp_path_factory.mktemp("tiny"), layers=1, gemma_layers=4, gemma_width=64)


@pytest.fixture(scope="module")
def gemma(tiny: TinyFiles) -> Gemma:
    return load_gemma(tiny.gemma, torch.float32, "cpu")


@pytest.fixture(scope="module")
def connectors(tiny: TinyFiles) -> LTX2TextConnectors:
    return load_checkpoint(tiny.checkpoint).connectors(torch.float32, "cpu")


@pytest.fixture
def folder(tiny: TinyFiles, tmp_path: Path) -> Path:
    """A copy of the Gemma folder, to break."""
    return Path(shutil.copytree(tiny.gemma, tmp_path / "gemma"))


def shard(folder: Path) -> list[Path]:
    """Split the folder's weights in two with an index, as the published ones are."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{i}-of-00002.safetensors" for i in ("00001", "00002")]
    split = {key: names[i % 2] for i, key in enumerate(sorted(weights))}
    for name in names:
        part = {key: weights[key] for key in split if split[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": split}))
    return [folder / name for name in names]


@pytest.mark.parametrize("run", ["endpoint_defaults", "ltx2", "linear_quadratic_ge"])
def test_equals_the_official_pipeline(oracle: Path, run: str) -> None:
    gemma = load_gemma(oracle / "tiny" / "gemma", torch.float32, "cpu")
    connectors = load_checkpoint(oracle / "tiny" / "ltx-2.3-tiny.safetensors").connectors(torch.float32, "cpu")
    with safe_open(oracle / f"{run}.safetensors", "pt") as golden:
        info = json.loads(golden.metadata()["info"])
        for i, prompt in enumerate((info["prompt"], info["negative_prompt"])):
            seen: dict[str, torch.Tensor] = {}
            context = encode_text(gemma, connectors, prompt, seen.__setitem__)
            mask = golden.get_tensor(f"prompt/{i}/mask")
            assert torch.equal(seen["mask"], mask)
            assert context.tokens == mask.sum()
            assert relative(context.video, golden.get_tensor(f"prompt/{i}/video_enc")) < 1e-5
            assert relative(context.audio, golden.get_tensor(f"prompt/{i}/audio_enc")) < 1e-5
            if run == "endpoint_defaults":
                states = golden.get_tensor(f"prompt/{i}/hidden_states")
                valid = mask[0].bool()[-states.shape[2] :]
                count = int(valid.sum())
                assert relative(seen["hidden_states"][:, :, -count:], states[:, :, valid]) < 1e-5


@pytest.mark.parametrize("prompt", PROMPTS)
def test_hidden_states_equal_a_padded_run(gemma: Gemma, prompt: str) -> None:
    """Gemma run on 1024 padded tokens, through the conditional-generation model, as the official code does."""
    inputs = gemma.tokenizer(
        prompt.strip(), padding="max_length", max_length=TEXT_LENGTH, truncation=True, padding_side="left",
        return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        output = gemma.model.model(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, output_hidden_states=True
        )
    reference = torch.stack(output.hidden_states)
    states, mask = hidden_states(gemma, prompt)
    assert torch.equal(mask, inputs.attention_mask)
    assert states.shape == reference.shape == (5, 1, TEXT_LENGTH, 64)
    valid = mask[0].bool()
    assert relative(states[:, :, valid], reference[:, :, valid]) < 1e-5
    assert not states[:, :, ~valid].any()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_context_equals_ltx_core(tiny: TinyFiles, gemma: Gemma, connectors: LTX2TextConnectors, prompt: str) -> None:
    """ltx-core 1.0.0 on the same file and hidden states, padding included."""
    loader = pytest.importorskip("ltx_core.loader.single_gpu_model_builder")
    peer = pytest.importorskip("ltx_core.text_encoders.gemma")
    extractor = pytest.importorskip("ltx_core.text_encoders.gemma.feature_extractor")
    builder = loader.SingleGPUModelBuilder(
        model_path=str(tiny.checkpoint),
        model_class_configurator=peer.EmbeddingsProcessorConfigurator,
        model_sd_ops=peer.EMBEDDINGS_PROCESSOR_KEY_OPS,
    )
    cpu = torch.device("cpu")
    processor = builder.meta_model(builder.model_config(), ())
    # Its projections are made for the published Gemma's size whatever the file says.
    processor.feature_extractor = extractor.FeatureExtractorV2(
        torch.nn.Linear(64 * 5, 64), embedding_dim=64, audio_aggregate_embed=torch.nn.Linear(64 * 5, 32)
    )
    weights = builder.load_sd([builder.model_path], registry=builder.registry, device=cpu, sd_ops=builder.model_sd_ops)
    processor.load_state_dict({k: v.float() for k, v in weights.sd.items()}, strict=True, assign=True)
    states, mask = hidden_states(gemma, prompt)
    with torch.no_grad():
        expected = processor.process_hidden_states(tuple(states), mask)
    context = encode_text(gemma, connectors, prompt)
    assert relative(context.video, expected.video_encoding) < 1e-5
    assert relative(context.audio, expected.audio_encoding) < 1e-5
    assert expected.attention_mask.all(), "the official context is masked, ours is not"


def test_one_bos_no_eos_and_stripped(gemma: Gemma) -> None:
    bos, eos = gemma.tokenizer.bos_token_id, gemma.tokenizer.eos_token_id
    ids = tokenize(gemma, "\n  a woman ")
    assert ids == tokenize(gemma, "a woman") == gemma.tokenizer("a woman").input_ids
    assert ids.count(bos) == 1 and ids[0] == bos and eos not in ids
    assert tokenize(gemma, "") == tokenize(gemma, " \n") == [bos]


def test_prompts_differ_and_are_sane(gemma: Gemma, connectors: LTX2TextConnectors) -> None:
    first, second, empty = (encode_text(gemma, connectors, text) for text in ("a man", "a woman", ""))
    assert isinstance(first, TextContext) and first.video.shape == (1, TEXT_LENGTH, 64) and first.audio.shape[2] == 32
    assert relative(first.video, second.video) > 1e-3 and relative(first.video, empty.video) > 1e-3
    assert empty.tokens == 1 and not empty.truncated and empty.video.isfinite().all()


def test_long_prompt_is_cut_and_says_so(gemma: Gemma, connectors: LTX2TextConnectors) -> None:
    exact, longer = "$" * (TEXT_LENGTH - 1), "$" * (TEXT_LENGTH - 1) + "%" * 500
    whole, cut = encode_text(gemma, connectors, exact), encode_text(gemma, connectors, longer)
    assert (whole.tokens, whole.truncated) == (TEXT_LENGTH, False)
    assert (cut.tokens, cut.truncated) == (TEXT_LENGTH + 500, True)
    assert torch.equal(whole.video, cut.video) and torch.equal(whole.audio, cut.audio)


def test_dtype_of_the_file_or_as_asked(tiny: TinyFiles) -> None:
    assert load_gemma(tiny.gemma, None, "cpu").model.dtype == torch.bfloat16
    gemma = load_gemma(tiny.gemma, torch.float16, "cpu")
    assert gemma.model.dtype == torch.float16
    assert not any(p.requires_grad for p in gemma.model.parameters()) and not gemma.model.training


def test_mixed_dtypes(gemma: Gemma, tiny: TinyFiles, connectors: LTX2TextConnectors) -> None:
    """The context has the connectors' dtype whatever Gemma's is."""
    half = load_checkpoint(tiny.checkpoint).connectors(torch.bfloat16, "cpu")
    exact, context = encode_text(gemma, connectors, "a woman"), encode_text(gemma, half, "a woman")
    assert context.video.dtype == context.audio.dtype == torch.bfloat16
    assert relative(context.video.float(), exact.video) < 0.03


def test_weights_stay_mapped(tiny: TinyFiles) -> None:
    """No second copy: the process maps the file itself."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    gemma = load_gemma(tiny.gemma, None, "cpu")
    address = gemma.model.model.language_model.embed_tokens.weight.data_ptr()
    for line in maps.read_text().splitlines():
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if start <= address < end:
            assert line.endswith("model.safetensors")
            return
    pytest.fail("the weights lie in no mapping")


def test_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_gemma(folder, None, "cpu").processor.tokenizer.bos_token == "<bos>"


def test_sharded_folder(folder: Path, gemma: Gemma) -> None:
    shard(folder)
    states, _ = hidden_states(load_gemma(folder, torch.float32, "cpu"), "a woman")
    assert torch.equal(states, hidden_states(gemma, "a woman")[0])


def test_can_still_write_text(gemma: Gemma) -> None:
    """The head is there and tied, for prompt expansion."""
    ids = torch.tensor([tokenize(gemma, "a woman")])
    written = gemma.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(written[:, : ids.shape[1]], ids)
    assert gemma.model.lm_head.weight.data_ptr() == gemma.model.model.language_model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_gemma(folder, None, "cpu")


def test_missing_folder_and_a_file_that_needs_its_folder(tmp_path: Path, folder: Path) -> None:
    for path, match in ((tmp_path / "absent", "not found"), (folder / "model.safetensors", "holds no tokenizer")):
        with pytest.raises(InputError, match=match) as error:
            load_gemma(path, None, "cpu")
        assert str(path) in str(error.value) and "folder" in str(error.value)


@pytest.mark.parametrize("broken", ["missing", "truncated", "pointer"])
def test_bad_shard_is_named(folder: Path, broken: str) -> None:
    second = shard(folder)[1]
    if broken == "missing":
        second.unlink()
    elif broken == "truncated":
        second.write_bytes(second.read_bytes()[:-1000])
    else:
        second.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match=second.name) as error:
        load_gemma(folder, None, "cpu")
    assert "\n" not in str(error.value)


def test_index_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"index\.json"):
        load_gemma(folder, None, "cpu")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("config.json", '{"model_type": "llama"}', "'llama'"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", "not a JSON object"),
        ("config.json", '{"model_type": "gemma3", "text_config": 5}', r"config\.json: describes no Gemma 3"),
        ("tokenizer.json", '{"version"', r"tokenizer\.json"),
    ],
)
def test_wrong_content(folder: Path, name: str, content: str, match: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=match) as error:
        load_gemma(folder, None, "cpu")
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("part", "entry", "value", "said"),
    [
        ("text_config", "hidden_activation", "nope", "'nope'"),  # a KeyError of transformers
        ("vision_config", "hidden_act", "nope", "'nope'"),
        ("text_config", "num_key_value_heads", 0, "by zero"),  # a ZeroDivisionError
        ("vision_config", "patch_size", 0, "by zero"),
    ],
)
def test_a_configuration_that_no_model_can_be_made_of(
    folder: Path, part: str, entry: str, value: object, said: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part][entry] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"cannot be loaded as Gemma 3 \(.*{said}.*\); use ") as error:
        load_gemma(folder, None, "cpu")
    assert str(error.value).startswith(f"{folder}: ")


@pytest.mark.parametrize("fault", [KeyError("x"), IndexError("x"), TypeError("x"), OverflowError("x")])
def test_what_transformers_raises_of_a_folder_is_one_sentence(folder: Path, fault: Exception) -> None:
    class Failing:
        @classmethod
        def from_pretrained(cls, *_: object, **__: object) -> None:
            raise fault

    with pytest.raises(InputError, match=r"cannot be loaded as a model \('?x'?\); use it\.$"):
        read_model(Failing, folder, "a model", "it", None)


def test_incomplete_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensor.*layers\.0\.mlp\.up_proj"):
        load_gemma(folder, None, "cpu")


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["language_model.model.norm.weight"] = torch.zeros(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=re.escape(str(folder))):
        load_gemma(folder, None, "cpu")


def test_gemma_of_another_size_than_the_checkpoint(gemma: Gemma, tmp_path: Path) -> None:
    other = write_tiny(tmp_path, layers=1)
    connectors = load_checkpoint(other.checkpoint).connectors(None, "cpu")
    with pytest.raises(InputError, match=r"5 hidden states of width 64.* 4 of width 32"):
        encode_text(gemma, connectors, "a woman")


def test_processor_missing_is_named(folder: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    gemma = load_gemma(folder, None, "cpu")
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        _ = gemma.processor


def test_connectors_on_a_device_without_float64_give_the_same(
    tiny: TinyFiles, gemma: Gemma, connectors: LTX2TextConnectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Apple's: diffusers' rotary embeddings begin in float64. The device is simulated (tests/nodes/devices.py)."""
    there = load_checkpoint(tiny.checkpoint).connectors(torch.float32, "cpu")
    expected = encode_text(gemma, connectors, "a woman speaks")
    monkeypatch.setattr(module, "WITH_FLOAT64", ("cpu", "cuda"))
    with simulated(LACKS) as device:
        made = encode_text(gemma, there.to(device), "a woman speaks")
        found = made.video.cpu(), made.audio.cpu()
    assert relative(found[0], expected.video) < 1e-6 and relative(found[1], expected.audio) < 1e-6
