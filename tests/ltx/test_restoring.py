"""What is put back of a source video into a film: every frame and every sample that nothing was made of."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from a2v.ltx.edits import VideoEdit
from a2v.ltx.given import Placed, delayed, placed
from a2v.ltx.media.audio import Track
from a2v.ltx.media.clip import ImageClip
from a2v.ltx.plan import Plan
from a2v.ltx.restoring import resounded, restored
from a2v.ltx.windows import cut_windows

FPS, RATE, COUNT, SIZE = Fraction(24), 48000, 22, 32
MADE = 200
"""What the model makes: frames of this grey, and a sound of 0.5."""


def clip() -> ImageClip:
    """Frame n has the grey n."""
    return ImageClip(torch.arange(COUNT, dtype=torch.float)[:, None, None, None].expand(-1, SIZE, SIZE, 3) / 255, FPS)


def put_back(edit: VideoEdit, frames: int) -> tuple[Placed, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The place of the clip, the film's frames as one grey each, its sound, and the clip's own sound."""
    found = placed(clip(), edit, None, FPS, frames, False)
    plan = Plan(SIZE, SIZE, found.frames, FPS, False, (), cut_windows(found.frames))
    plan = Plan(**{**vars(plan), "shown": found.shown, "lead": found.lead, "tail": found.tail})
    decoded = (torch.full((1, SIZE, SIZE, 3), MADE, dtype=torch.uint8) for _ in range(found.frames))
    pictures = torch.cat(list(restored(decoded, found.source, plan)))
    assert (pictures == pictures[:, :1, :1, :1]).all()
    own = torch.sin(torch.arange(COUNT * 2000 + 700) / 9)[None] * 0.4 - 0.3  # a file's sound is often a little longer
    sound = Track(torch.full((2, found.frames * 2000), 0.5), RATE)
    whole = resounded(sound, delayed(Track(own, RATE), found.source.at), found.source, plan)
    return found, pictures[:, 0, 0, 0], whole.waveform, own[:, : COUNT * 2000]


@pytest.mark.parametrize("context", [0, 9, 17])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_longer_film_has_every_frame_and_sample_of_the_video(direction: str, context: int) -> None:
    found, pictures, sound, own = put_back(VideoEdit("both", extend=direction, context=context), 25)
    backward, new = direction == "backward", 25 - (context // 8 * 8 if direction == "backward" else context)
    assert len(pictures) == COUNT + new and sound.shape[1] == (COUNT + new) * 2000
    assert found.lead + found.tail == len(pictures) - 25
    frames, samples = slice(new, None) if backward else slice(COUNT), slice(new * 2000, None)
    samples = samples if backward else slice(COUNT * 2000)
    assert pictures[frames].tolist() == [*range(COUNT)]
    assert torch.equal(sound[:, samples], own.expand(2, -1))
    made = pictures[:new].flip(0) if backward else pictures[COUNT:]
    assert (made[:5].int().diff() > 20).all() and (made[4:] == MADE).all(), "it rises over four frames"
    heard = sound[0, : new * 2000].flip(0) if backward else sound[0, COUNT * 2000 :]
    edge = own[0, 0] if backward else own[0, -1]
    assert (heard[0] - edge).abs() < 2e-3 and heard[:960].diff().abs().max() < 2e-3, "there is no click"
    assert (heard[960:] == 0.5).all()


def test_a_film_with_more_frames_keeps_every_sample_too() -> None:
    """22 frames end within a latent of sound; of the picture whole latents stay."""
    _, pictures, sound, own = put_back(VideoEdit("both"), 49)
    assert pictures[:17].tolist() == [*range(17)]
    assert torch.equal(sound[:, : COUNT * 2000], own.expand(2, -1)) and (sound[:, COUNT * 2000 + 960 :] == 0.5).all()
    _, _, sound, own = put_back(VideoEdit("both", at=10 / 24), 49)
    assert torch.equal(sound[:, 20_000 : 20_000 + COUNT * 2000], own.expand(2, -1))
    assert (sound[:, : 20_000 - 960] == 0.5).all()


def test_sound_that_is_renewed_to_the_end_is_renewed_to_the_last_sample() -> None:
    """The last latent of sound ends before the film does."""
    _, _, sound, _ = put_back(VideoEdit("sound"), 22)
    assert (sound == 0.5).all()
    _, _, sound, own = put_back(VideoEdit("sound", start=0.5), 22)
    assert (sound[:, 30_000:] == 0.5).all() and torch.equal(sound[:, :22_000], own[:, :22_000].expand(2, -1))


def test_a_short_video_before_which_the_film_begins() -> None:
    """Fewer frames than a latent: the last one is held for the model alone."""
    found = placed(clip_of(5), VideoEdit("both", extend="backward"), None, FPS, 17, False)
    assert (found.frames, found.shown, found.tail) == (17, 14, 0)
    plan = Plan(SIZE, SIZE, 17, FPS, False, (), cut_windows(17), shown=14)
    decoded = iter([torch.full((17, SIZE, SIZE, 3), MADE, dtype=torch.uint8)])
    pictures = torch.cat(list(restored(decoded, found.source, plan)))[:, 0, 0, 0]
    assert len(pictures) == 14 and pictures[9:].tolist() == [0, 1, 2, 3, 4]
    assert found.source.mask(plan, (SIZE, SIZE)).flatten().tolist() == [1, 1, 0]


def clip_of(count: int) -> ImageClip:
    return ImageClip(clip().images[:count], FPS)
