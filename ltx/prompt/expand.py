"""A short prompt to a full one, written by the text encoder itself: Gemma's own chat, with the first image if any.

It never stops a run: what goes wrong leaves the prompt as the user wrote it, with the reason. Only an interrupt passes
through. Gemma cannot hear, so the soundtrack is known to it by the user's words alone. Loading Gemma is gemma.py's
business, and turning the final prompt into a context text.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from .gemma import Gemma

NEW_TOKENS = 512
IMAGE_SIDE = 896  # pixels, the longer side; what Gemma's vision tower takes
TEMPERATURE = 0.7
TOP_K, TOP_P = 64, 0.95  # Gemma's published ones, given here because not every copy of its folder brings them
STRAIGHT = str.maketrans({"‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‟": '"'})

_TASK = (
    "You write prompts for a model that makes one short video shot to a soundtrack that already exists. The user gives "
    "an idea of the shot{given}. Turn it into the description of that shot.\n"
)
_RULES = (
    "- Keep the user's subject, setting, mood and intent; add what makes them visible, and contradict nothing.\n"
    "- You cannot hear the soundtrack. Take from the user's words what sounds: speech, song, music, noise. Where they "
    "do not tell, write of the sound in general words and give it no genre, language or instrument.\n"
    "- Say who or what moves, and how the movement follows the sound: lips, jaw and breath with a voice; hands, head "
    "and body with its stress and with the beat; things and surroundings with noises. A voice that is heard belongs to "
    "somebody whose mouth is seen, unless the user wants a narrator.\n"
    "- Never invent words that are spoken or sung, nor text that appears in the picture. Words the user puts in quotes "
    "stay as they are, in their language.\n"
    "- Tell what happens in the order in which it happens, in the present tense, as one continuous shot without cuts "
    "unless the user asks for them.\n"
    "- Name the framing, the angle and the camera's movement (a still camera where the user asks for none), the light, "
    "the colours, and the style: live action unless the user says otherwise.\n"
    "- Write only what can be seen or heard: no inner thoughts, no judgements, no talk of quality or resolution.\n"
    "Answer in English, whatever language the user writes in: one paragraph of plain sentences, at most 200 words, "
    "beginning with a word. Give the description alone: no title, no introduction, no quotation marks around it, no "
    "list, no markup, no remark after it."
)
SYSTEM = _TASK.format(given="") + _RULES
SYSTEM_IMAGE = (
    _TASK.format(given=" and the picture that is its first frame")
    + "- The shot begins as the picture shows it: name the people, things, place, light and style you see there, as "
    "far as they matter, and then what changes from there on. Where the user's words and the picture differ, the "
    "picture is how it begins and the words are what happens.\n" + _RULES
)
# English, since it is the language of nearly all captions that video models learn from; quoted speech is left alone.


@dataclass(frozen=True)
class Expansion:
    """The prompt to use. `reason`, one sentence: why it is the user's own (`expanded` False), or what it leaves out."""

    prompt: str
    expanded: bool
    reason: str | None = None


def expand(
    gemma: Gemma,
    prompt: str,
    *,
    seed: int,
    image: Tensor | None = None,
    on_token: Callable[[int, int, str], None] | None = None,
    interrupts: tuple[type[Exception], ...] = (),
) -> Expansion:
    """The prompt as Gemma would write it; the same seed gives the same text. `image` is uint8 [H, W, 3].

    `on_token` is called before the first token and after each with (tokens done, at most, the text so far). What it
    raises ends the writing at that token and leaves this function, and so does any of `interrupts`, which the model's
    own layers may raise; any other failure gives the prompt back unchanged. A Gemma without its vision tower goes by
    the words alone.
    """
    unseen = None
    if image is not None and not gemma.sees:
        image, unseen = None, f"The image is not described: {gemma.path.name} has no vision tower."
    if not prompt.strip() and unseen:
        return Expansion(prompt, expanded=False, reason=unseen)
    if not prompt.strip() and image is None:
        return _unchanged(prompt, "it is empty and there is no image to describe.")
    progress = _Progress(gemma, on_token)
    try:
        written = tidy(_generate(gemma, prompt, seed, image, progress))
    except Exception as error:
        if progress.interrupted or isinstance(error, interrupts):  # in ComfyUI 0.3.75 it is a plain Exception
            raise
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return _unchanged(prompt, "the text encoder ran out of memory.")
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return _unchanged(prompt, message.rstrip(".") + ".")
    if not written:
        return _unchanged(prompt, "the text encoder's answer has no letters.")
    return Expansion(written, expanded=True, reason=unseen)


def tidy(text: str) -> str:
    """Curly quotes made straight, and everything before the first letter dropped: quotes, asterisks, white space."""
    text = text.translate(STRAIGHT)
    return text[next((i for i, sign in enumerate(text) if sign.isalpha()), len(text)) :].strip()


def chat(gemma: Gemma, prompt: str, image: bool) -> str:
    """What Gemma is given to continue, through its folder's own chat template; <bos> is part of it."""
    for token in gemma.tokenizer.added_tokens_decoder.values():
        if token.special:  # in the user's text it would end the turn or ask for a second image
            prompt = prompt.replace(token.content, " ")
    content = [{"type": "text", "text": f"The idea: {prompt.strip() or 'none, the picture says it all'}"}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_IMAGE if image else SYSTEM}]},
        {"role": "user", "content": [{"type": "image"}, *content] if image else content},
    ]
    return gemma.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@torch.no_grad()
def _generate(gemma: Gemma, prompt: str, seed: int, image: Tensor | None, progress: _Progress) -> str:
    text = chat(gemma, prompt, image is not None)
    options = {"add_special_tokens": False, "return_tensors": "pt"}  # the template wrote <bos>; one is enough
    if image is None:
        inputs = gemma.tokenizer(text, verbose=False, **options)
    else:
        inputs = gemma.processor(text=text, images=_resize(image), **options)
    inputs = inputs.to(gemma.model.get_input_embeddings().weight.device)
    ends = [gemma.tokenizer.eos_token_id, gemma.tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    draw = [TemperatureLogitsWarper(TEMPERATURE), TopKLogitsWarper(TOP_K), TopPLogitsWarper(TOP_P), _Draw(seed)]
    output = gemma.model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=ends,
        pad_token_id=gemma.tokenizer.pad_token_id,
        logits_processor=LogitsProcessorList(draw),
        streamer=progress,
        **{"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0},  # _Draw leaves one token to choose
    )
    return gemma.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class _Draw(LogitsProcessor):
    """Draws the next token from a generator of its own, so that no device's global one is read, seeded or advanced."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed % 2**64)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        candidates = scores[0].isfinite().nonzero()[:, 0]
        chances = scores[0, candidates].float().softmax(0).cpu()
        drawn = candidates[torch.multinomial(chances, 1, generator=self.generator).to(candidates.device)]
        return torch.full_like(scores, float("-inf")).index_fill(1, drawn, 0.0)


class _Progress(BaseStreamer):
    """Hands the text so far to `on_token`, and remembers whether that raised."""

    def __init__(self, gemma: Gemma, on_token: Callable[[int, int, str], None] | None) -> None:
        self.gemma, self.on_token = gemma, on_token
        self.tokens: list[int] | None = None
        self.interrupted = False

    def put(self, value: Tensor) -> None:
        self.tokens = [] if self.tokens is None else [*self.tokens, *value.tolist()]  # the prompt comes first
        if self.on_token is None:
            return
        text = self.gemma.tokenizer.decode(self.tokens, skip_special_tokens=True)
        try:
            self.on_token(len(self.tokens), NEW_TOKENS, text)
        except BaseException:
            self.interrupted = True
            raise

    def end(self) -> None:
        pass


def _resize(image: Tensor) -> Image.Image:
    """uint8 [H, W, 3] → the same picture with its longer side at IMAGE_SIDE."""
    picture = Image.fromarray(image.cpu().numpy())
    scale = IMAGE_SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _unchanged(prompt: str, why: str) -> Expansion:
    return Expansion(prompt, expanded=False, reason=f"The prompt is used as written: {why}")
