"""What is trained is what the pack runs: training's forward and transformer.py give the same velocities."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from a2v.ltx.diffusion.block import adopt
from a2v.ltx.diffusion.modulation import Levels, modulation, rotary
from a2v.ltx.diffusion.passes import Pass, velocities
from a2v.ltx.diffusion.tokens import Tokens
from a2v.ltx.prompt.gemma import load_gemma
from a2v.ltx.prompt.text import encode_text
from a2v.mini import dataset, flow, sizes, text

PROMPT = "a red round face on the left is talking on a navy background"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text.write_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def model() -> flow.Model:
    torch.manual_seed(0)
    made = flow.Model().eval()
    with torch.no_grad():  # as after training: nothing that matters is zero
        for name, p in made.named_parameters():
            if "table" in name or "proj_out" in name or "gate" in name:
                p.normal_(0, 0.2)
    return made


@pytest.fixture(scope="module")
def clips() -> list[dataset.Clip]:
    """Tokens of the right shapes; what they show does not matter here."""
    g = torch.Generator().manual_seed(3)
    made = []
    for _ in range(3):
        sides = {"small": 2, "large": 4}
        latents = {s: torch.randn(sizes.LIVE, 7, n, n, generator=g) for s, n in sides.items()}
        ends = {(s, f): torch.randn(sizes.LIVE, 1, n, n, generator=g) for s, n in sides.items() for f in (49, 25)}
        made.append(dataset.Clip((PROMPT,), latents, ends, torch.randn(8, 51, 16, generator=g)))
    return made


@pytest.mark.parametrize("isolated", [False, True])
def test_training_and_pack_give_the_same_velocities(
    model: flow.Model, clips: list[dataset.Clip], gemma: Path, isolated: bool
) -> None:
    rng, generator = np.random.default_rng(5), torch.Generator().manual_seed(5)
    batch = flow.make_batch(clips, rng, generator, 1, "small")
    mask = batch.video_mask.clone()
    mask[:, :4] = 0  # a first image
    mask[:, 4:8] = 0.5
    batch = flow.replace(batch, texts=(PROMPT,), isolated=isolated, video_mask=mask)
    batch = flow.replace(batch, audio_sigma=torch.tensor([0.3]), audio_mask=torch.ones_like(batch.audio_mask))
    with torch.no_grad():
        ours = flow.predict(model, batch, text.Prompts(gemma), flow.TEXT_LENGTH)

    transformer = copy.deepcopy(model.transformer)  # the pack changes its blocks
    context = encode_text(load_gemma(gemma, torch.float32), model.connectors, PROMPT)
    adopt(transformer)
    positions = rotary(transformer, batch.video_positions, batch.audio_positions, torch.device("cpu"))
    sigma, heard = batch.video_sigma, batch.audio_sigma
    levels = modulation(
        transformer,
        Levels.of(mask[..., 0]) * sigma,
        Levels.of(batch.audio_mask[..., 0]) * heard,
        sigma,
        heard,
        torch.float32,
    )
    with torch.no_grad():
        ((video, audio),) = velocities(
            transformer,
            Tokens(batch.video, batch.audio),
            [Pass(context.video, context.audio, isolated=isolated)],
            positions,
            levels,
        )
    torch.testing.assert_close(ours[0], video, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[1], audio, rtol=1e-4, atol=1e-4)


def test_a_batch_keeps_what_is_given_and_noises_the_rest(clips: list[dataset.Clip]) -> None:
    generator = torch.Generator().manual_seed(1)
    seen = {"first": 0, "last": 0, "given": 0, "dropped": 0}
    for number in range(40):
        batch = flow.make_batch(clips, np.random.default_rng(number), generator, 4, "small")
        share = batch.video_sigma[:, None, None] * batch.video_mask
        alive = batch.video[..., : sizes.LIVE]
        # x = clean + share·(noise - clean), whatever the share: nothing of the noise where it is 0
        clean = alive - share * batch.video_target
        noise = clean + batch.video_target
        torch.testing.assert_close(alive, clean * (1 - share) + noise * share, rtol=1e-4, atol=1e-4)
        assert not batch.video[..., sizes.LIVE :].any()
        per_frame = 4
        seen["first"] += int((batch.video_mask[:, :per_frame] < 1).all(1).sum())
        seen["last"] += int(batch.video.shape[1] % 12 == 8 or batch.video.shape[1] in (32, 20))
        frozen = batch.audio_sigma == 0
        seen["given"] += int(frozen.sum())
        assert not batch.audio_mask[frozen].any() and batch.audio_mask[~frozen].all()
        seen["dropped"] += sum(t != PROMPT for t in batch.texts)
    assert all(count > 3 for count in seen.values()), seen


def test_some_rows_are_misled_and_some_keep_a_part() -> None:
    """Captions and sounds of other clips, tokens without noise, and whole pictures whose sound is to be made, each in
    about the share that is wanted. Everything of a clip is its number, so that a row tells what it is made of."""
    made = []
    for number in range(6):
        full = {size: torch.full((sizes.LIVE, 7, n, n), float(number)) for size, n in (("small", 2), ("large", 4))}
        ends = {(size, frames): full[size][:, :1] for size in full for frames in (49, 25)}
        made.append(dataset.Clip((str(number),), full, ends, torch.full((8, 51, 16), float(number))))
    rows, steps, seen = 8, 80, {"caption": 0, "sound": 0, "kept": 0, "shown": 0}
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        batch = flow.make_batch(made, np.random.default_rng(step), generator, rows, "small")
        share = batch.video_sigma[:, None, None] * batch.video_mask
        clean = batch.video[..., : sizes.LIVE] - share * batch.video_target
        heard = batch.audio - batch.audio_sigma[:, None, None] * batch.audio_mask * batch.audio_target
        tokens = clean.shape[1] - (4 if clean.shape[1] in (32, 20) else 0)  # without an end image
        for row, said in enumerate(batch.texts):
            own = round(float(clean[row].mean()))
            seen["caption"] += said.isdigit() and int(said) != own
            seen["sound"] += round(float(heard[row].mean())) != own
            if shown := float(batch.video_sigma[row]) == 0:
                assert not batch.video_mask[row].any() and float(batch.audio_sigma[row]) > 0
            seen["shown"] += shown
            seen["kept"] += int(not shown and (batch.video_mask[row, 4:tokens] == 0).any())
    shares = {name: count / (rows * steps) for name, count in seen.items()}
    assert 0.4 * flow.MISLED < shares["caption"] < 1.2 * flow.MISLED, shares
    assert 0.4 * flow.MISLED < shares["sound"] < 1.2 * flow.MISLED, shares
    assert 0.6 * flow.KEPT < shares["kept"] < 1.3 * flow.KEPT, shares
    shown = (1 - flow.GIVEN) * flow.SHOWN
    assert 0.6 * shown < shares["shown"] < 1.4 * shown, shares


def test_what_an_edit_keeps_is_a_time_or_all_but_a_box() -> None:
    rng, shape, ways = np.random.default_rng(0), (7, 2, 4), {"before": 0, "after": 0, "beside": 0}
    for _ in range(300):
        places = flow.kept(rng, shape).reshape(shape)
        whole = places.flatten(1)
        if (whole.all(1) | ~whole.any(1)).all() and 0 < int(whole[:, 0].sum()) < shape[0]:
            ways["before" if whole[0, 0] else "after"] += 1
        else:
            assert (places == places[:1]).all()
            box = ~places[0]
            assert torch.equal(box, box.any(1)[:, None] & box.any(0)[None])
            ways["beside"] += 1
    assert min(ways.values()) > 50, ways


def test_clips_are_trained_at_parts_of_their_length() -> None:
    assert dataset.lengths(97) == (97, 49, 25) and dataset.lengths(49) == (49, 25) and dataset.lengths(17) == (17,)
    assert flow._shares(3) == pytest.approx([0.2, 0.4, 0.4]) and flow._shares(2) == [0.5, 0.5]
    assert flow._shares(4) == pytest.approx([0, 0.2, 0.4, 0.4])


@pytest.mark.soak  # the weights that it made are checked by test_sample.py
def test_training_learns_and_a_killed_run_goes_on_where_it_was(
    clips: list[dataset.Clip], gemma: Path, tmp_path: Path
) -> None:
    options = flow.FlowOptions(seconds=1e9, rows=3, warmup=1, large=0.0, full=0.0)

    def steps(folder: Path, count: int) -> flow.Stage:
        torch.manual_seed(0)
        stage = flow.Stage("transformer", flow.Model(), folder, options, plain=flow.PLAIN)
        prompts = text.Prompts(gemma)
        for number in stage.steps():
            generator = torch.Generator().manual_seed(number)
            batch = flow.make_batch(clips, stage.rng, generator, 3, "small")
            stage.update(sum(flow.losses(batch, *flow.predict(stage.module, batch, prompts, flow.SHORT))))
            if number + 1 == count:
                stage.step += 1
                stage.save()
                return stage
        raise AssertionError("the budget ended early")

    whole = steps(tmp_path / "whole", 4)
    steps(tmp_path / "halves", 2)
    halves = steps(tmp_path / "halves", 4)
    assert halves.step == whole.step == 4
    for key, value in whole.module.state_dict().items():
        torch.testing.assert_close(halves.module.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    dead = whole.module.transformer.proj_in.weight[:, sizes.LIVE :]
    assert not dead.any() and not whole.module.transformer.proj_out.weight[sizes.LIVE :].any()
