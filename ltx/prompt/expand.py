"""Expands a short prompt to a full one. A Gemma writes it in its chat format and looks at the first image if there is
one. For LTX-2.3 that is the text encoder itself. LTX-2.5's encoder cannot write, so another Gemma does (expander.py).

An expansion never stops a run: after a failure the user's own prompt is used, and the report gives the reason. Only an
interrupt is raised. Gemma cannot hear, so it knows the soundtrack only from the user's words. gemma.py loads Gemma, and
text.py turns the final prompt into a context.
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
    NoRepeatNGramLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from ..errors import out_of_memory
from ..models import MODELS
from .gemma import Gemma

NEW_TOKENS = 512
GREEDY_TOKENS, NO_REPEAT = 600, 5  # as LTX-2.5's official code has them: tokens, and the length of a repetition
IMAGE_SIDE = 896  # pixels of the longer side, the input size of Gemma's vision tower
TEMPERATURE = 0.7
TOP_K, TOP_P = 64, 0.95  # Gemma's published values; they stand here because some copies of its folder lack them
SEEING = "describe it in words, or choose a text encoder or expander that has one"
THOUGHTS_END = "<channel|>"
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
# The answer is English because nearly all captions that video models learn from are. Quoted speech is not translated.


@dataclass(frozen=True)
class Expansion:
    """The prompt to use. expanded: whether Gemma wrote it. reason: one sentence that says why it is the user's own
    prompt, or what the written one leaves out; else None."""

    prompt: str
    expanded: bool
    reason: str | None = None


def expand(
    gemma: Gemma,
    prompt: str,
    *,
    seed: int,
    image: Tensor | None = None,
    greedy: bool = False,
    on_token: Callable[[int, int, str], None] | None = None,
    interrupts: tuple[type[Exception], ...] = (),
) -> Expansion:
    """Returns the prompt as Gemma rewrites it. `image` is uint8 [H, W, 3].

    greedy: whether each token is the likeliest one, as for LTX-2.5, and the seed does not matter. Otherwise tokens are
    drawn, and the same seed gives the same text.

    `on_token` is called before the first token and after each token, with (tokens written, the most tokens, the text so
    far). An exception from `on_token` is raised again, and so is one of `interrupts`, which the model's own layers may
    raise. After any other failure the result is the user's prompt. A Gemma without its vision tower uses only the
    words.
    """
    if not gemma.writes:
        return _unchanged(
            prompt,
            f"{gemma.path.name} encodes prompts for LTX-2.5 and was not trained to write them; choose an expander, for "
            f"example {MODELS['expander'].repository}.",
        )
    image_note = None
    if image is not None and not gemma.sees:
        image, image_note = None, f"The image is not described: {gemma.path.name} has no vision tower; {SEEING}."
    if not prompt.strip() and image_note:
        return Expansion(prompt, expanded=False, reason=image_note)
    if not prompt.strip() and image is None:
        return _unchanged(prompt, "it is empty and there is no image to describe.")
    progress = _Progress(gemma, GREEDY_TOKENS if greedy else NEW_TOKENS, on_token)
    try:
        written = tidy(_generate(gemma, prompt, None if greedy else seed, image, progress))
    except Exception as error:  # any failure of the model or its template; the video is still made
        if progress.interrupted or isinstance(error, interrupts):  # ComfyUI 0.3.75's interrupt is a plain Exception
            raise
        if out_of_memory(error):
            return _unchanged(prompt, "Gemma ran out of memory.")
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return _unchanged(prompt, message.rstrip(".") + ".")
    if not written:
        return _unchanged(prompt, "Gemma's answer has no letters.")
    cut = [f"Gemma's answer was cut after {progress.total} tokens."] if progress.cut else []
    return Expansion(written, expanded=True, reason=" ".join(filter(None, [image_note, *cut])) or None)


def tidy(text: str) -> str:
    """Makes curly quotes straight and removes everything before the first letter: quotes, asterisks, white space."""
    text = text.translate(STRAIGHT)
    return text[next((i for i, sign in enumerate(text) if sign.isalpha()), len(text)) :].strip()


def chat(gemma: Gemma, prompt: str, image: bool) -> str:
    """The text that Gemma continues, made by its folder's own chat template. It begins with <bos>."""
    for token in gemma.tokenizer.added_tokens_decoder.values():
        if token.special:  # such a token in the user's text would end the turn or ask for a second image
            prompt = prompt.replace(token.content, " ")
    content = [{"type": "text", "text": f"The idea: {prompt.strip() or 'none, the picture says it all'}"}]
    system = SYSTEM_IMAGE if image else SYSTEM
    bare = gemma.model.config.model_type.startswith("gemma4")  # its template takes the system's words as plain text
    messages = [
        {"role": "system", "content": system if bare else [{"type": "text", "text": system}]},
        {"role": "user", "content": [{"type": "image"}, *content] if image else content},
    ]
    return gemma.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@torch.no_grad()
def _generate(gemma: Gemma, prompt: str, seed: int | None, image: Tensor | None, progress: _Progress) -> str:
    """The answer. seed: None for the likeliest tokens."""
    text = chat(gemma, prompt, image is not None)
    options = {"add_special_tokens": False, "return_tensors": "pt"}  # the template has written <bos> already
    if image is None:
        inputs = gemma.tokenizer(text, verbose=False, **options)
    else:
        inputs = gemma.processor(text=text, images=_resize(image), **options)
    inputs = inputs.to(gemma.model.get_input_embeddings().weight.device)
    asked = inputs["input_ids"].shape[1]
    if seed is None:
        choice = [_NoRepetition(asked)]
    else:
        choice = [TemperatureLogitsWarper(TEMPERATURE), TopKLogitsWarper(TOP_K), TopPLogitsWarper(TOP_P), _Draw(seed)]
    output = gemma.model.generate(
        **inputs,
        max_new_tokens=progress.total,
        eos_token_id=gemma.ends,
        pad_token_id=gemma.tokenizer.pad_token_id,
        logits_processor=LogitsProcessorList(choice),
        streamer=progress,
        **{"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0},  # _Draw leaves one token to choose from
    )
    return gemma.tokenizer.decode(_answer(gemma, output[0, asked:]), skip_special_tokens=True)


def _answer(gemma: Gemma, tokens: Tensor) -> Tensor:
    """The tokens after Gemma 4's thoughts, which a channel of their own holds."""
    end = gemma.tokenizer.convert_tokens_to_ids(THOUGHTS_END)
    if end in (None, gemma.tokenizer.unk_token_id):
        return tokens
    found = (tokens == end).nonzero()
    return tokens[int(found[-1]) + 1 :] if len(found) else tokens


class _NoRepetition(NoRepeatNGramLogitsProcessor):
    """Forbids to repeat NO_REPEAT tokens of the answer. Those of the question may be repeated, unlike in the official
    code: words that the user quotes must stay as they are."""

    def __init__(self, asked: int) -> None:
        super().__init__(NO_REPEAT)
        self.asked = asked

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return super().__call__(input_ids[:, self.asked :], scores)


class _Draw(LogitsProcessor):
    """Draws the next token from its own generator, so that no device's global generator is read, seeded or advanced."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed % 2**64)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        candidates = scores[0].isfinite().nonzero()[:, 0]
        chances = scores[0, candidates].float().softmax(0).cpu()
        drawn = candidates[torch.multinomial(chances, 1, generator=self.generator).to(candidates.device)]
        return torch.full_like(scores, float("-inf")).index_fill(1, drawn, 0.0)


class _Progress(BaseStreamer):
    """Gives the text so far to `on_token`, and records whether `on_token` raised."""

    def __init__(self, gemma: Gemma, total: int, on_token: Callable[[int, int, str], None] | None) -> None:
        self.gemma, self.total, self.on_token = gemma, total, on_token
        self.tokens: list[int] | None = None
        self.interrupted = False

    @property
    def cut(self) -> bool:
        """Whether the answer was not at its end after the most tokens."""
        tokens = self.tokens or []
        return len(tokens) >= self.total and tokens[-1] not in self.gemma.ends

    def put(self, value: Tensor) -> None:
        self.tokens = [] if self.tokens is None else [*self.tokens, *value.tolist()]  # the first call has the prompt
        if self.on_token is None:
            return
        text = self.gemma.tokenizer.decode(self.tokens, skip_special_tokens=True)
        try:
            self.on_token(len(self.tokens), self.total, text)
        except BaseException:
            self.interrupted = True
            raise

    def end(self) -> None:
        pass


def _resize(image: Tensor) -> Image.Image:
    """uint8 [H, W, 3] → the same picture, scaled so that its longer side is IMAGE_SIDE."""
    picture = Image.fromarray(image.cpu().numpy())
    scale = IMAGE_SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _unchanged(prompt: str, why: str) -> Expansion:
    return Expansion(prompt, expanded=False, reason=f"The prompt is used as written: {why}")
