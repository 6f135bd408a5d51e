"""Encodes what the stages of a job see: its images, the source video and the reference video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .diffusion.conditioning import Guide, Reference
from .diffusion.encode import encode_image, encode_video
from .encoding import OnProgress
from .given import Note
from .job import Compute, Job
from .media.images import fit
from .trace import Trace
from .windows import Window


@dataclass(frozen=True)
class Seen:
    """What a stage is given to see, encoded at its size. guides: the images. clean, mask: of the source video, as in
    `Conditions`. references: those of each window."""

    guides: tuple[Guide, ...] = ()
    clean: Tensor | None = None
    mask: Tensor | None = None
    references: tuple[tuple[Reference, ...], ...] = ()


def encode_pictures(
    job: Job, compute: Compute, trace: Trace | None, say: OnProgress, note: Note | None = None
) -> tuple[Seen, ...]:
    """Encodes the images, the source and the reference for each stage. note: of the reference, as for
    `Clip.pictures`."""
    if not job.images and job.source is None and job.reference is None:
        return tuple(Seen() for _ in job.plan.sizes)
    encoder = _PictureEncoder(job, job.checkpoint.video_encoder(compute.dtype, compute.device), trace, say, note)
    return tuple(encoder.stage(number, size) for number, size in enumerate(job.plan.sizes))


class _PictureEncoder:
    """Encodes what the stages of a job see. The trace counts what conditions them."""

    def __init__(self, job: Job, vae: nn.Module, trace: Trace | None, say: OnProgress, note: Note | None) -> None:
        self.job, self.vae, self.trace, self.say, self.note = job, vae, trace, say, note
        self.count = 0

    def stage(self, number: int, size: tuple[int, int]) -> Seen:
        """size: width and height of the stage."""
        job = self.job
        guides = tuple(Guide(self._image(image.pixels, size), image.frame, image.strength) for image in job.images)
        clean = mask = None
        if job.source is not None:
            mask, clean = job.source.mask(job.plan, size), self._source(size, None if number else self.trace)
        references = ()
        if job.reference is not None and job.reference.use.acts(not number):
            references = tuple((each,) for each in self._references(size))
        return Seen(guides, clean, mask, references)

    def _image(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        pixels = fit(picture, *size)
        latent = encode_image(self.vae, pixels)
        self._traced(pixels, latent)
        return latent

    def _source(self, size: tuple[int, int], trace: Trace | None) -> Tensor:
        plan, pictures = self.job.plan, self.job.source.pictures(self.job.plan)
        if trace is not None:
            pictures = list(pictures)
            trace("source/frames_u8", torch.stack(pictures))
        latent = self._video("encode video", (fit(picture, *size) for picture in pictures), plan.frames)
        if trace is not None:
            trace("source/video_latent", latent)
        return latent

    def _references(self, size: tuple[int, int]) -> Iterator[Reference]:
        """The reference beside each window of a stage of that width and height."""
        reference, plan = self.job.reference, self.job.plan
        use = reference.use

        def encode(window: Window) -> Tensor:
            kept = None if self.trace is None else []
            pictures = reference.pictures(window, plan.fps, self.note)
            pixels = reference.fitted(pictures, *reference.size(size))
            latent = self._video("encode reference", pixels, reference.frames(window), kept)
            if kept is not None:
                self._traced(torch.cat(kept, 2), latent)
            return latent

        for latent in reference.encoded(plan.windows, encode):
            yield Reference(latent, use.downscale, use.stride, use.strength, use.attention)

    def _video(self, phase: str, pixels: Iterable[Tensor], frames: int, kept: list[Tensor] | None = None) -> Tensor:
        """Encodes pixels, [1, 3, 1, height, width] for each frame, as they come. kept: gets what the encoder does."""

        def told() -> Iterator[Tensor]:
            for number, picture in enumerate(pixels):
                if kept is not None:
                    kept.append(picture)
                yield picture
                self.say(phase, number + 1, frames)

        return encode_video(self.vae, told())

    def _traced(self, pixels: Tensor, latent: Tensor) -> None:
        if self.trace is not None:
            self.trace(f"cond/{self.count}/pixels", pixels)
            self.trace(f"cond/{self.count}/latent", latent)
            self.count += 1
