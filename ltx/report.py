"""The report of a finished video: the requested values, the used values, and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from .job import Job
from .timeline import streams
from .weights.lora import Match


def describe(job: Job, prompt: str, notes: list[str], sections: Sequence[str] = ()) -> dict[str, Any]:
    """Makes the report of a job. prompt: the prompt as it was used; sections: those of the sections. The report has
    file names but no paths, because it is stored in the video file."""
    asked = asdict(replace(job.request, given=frozenset(), notes=()))
    del asked["given"], asked["notes"]
    steering, stage = job.steering[0], (job.keeps_sound, job.keeps_picture, job.referred)
    return {
        "asked": asked,
        "used": {
            "width": job.plan.width,
            "height": job.plan.height,
            "frames": job.plan.written,
            "fps": str(job.plan.fps),
            **_windows(job),
            **_sections(job, sections),
            "seed": job.request.seed,
            "prompt": prompt,
            "steps": steering.steps,
            "passes_per_step": steering.passes(*stage),
            "acceleration": job.request.acceleration,
            "model_version": job.checkpoint.version,
            "loras": [
                {"file": loaded.path.name, **_counts(fits), "first_pass": first, "second_pass": second}
                for (loaded, first), (_, second), fits in zip(*job.loras, job.fits, strict=True)
            ],
        },
        "notes": [*job.notes, *notes],
    }


def _windows(job: Job) -> dict[str, Any]:
    """The windows of a film that was asked for in windows: their number, the frames of the longest, and the overlap."""
    if job.request.windows is None:
        return {}
    windows = job.plan.windows
    return {
        "windows": {
            "count": len(windows),
            "frames": max(window.frames for window in windows),
            "overlap": job.request.windows.overlap if len(windows) > 1 else 0,
            "pauses": job.request.windows.pauses,
        }
    }


def _sections(job: Job, prompts: Sequence[str]) -> dict[str, Any]:
    """The sections of a film: where each begins, the prompt that was used, and the seed if it has a stream of noise."""
    if not job.plan.sections:
        return {}
    numbers, seeds = streams(job.plan.sections, job.request.seed)
    return {
        "sections": [
            {
                "frame": section.first_frame(job.plan.fps),
                "name": section.name,
                "prompt": prompt,
                "cut": section.cut,
                "seed": seeds[number],
            }
            for section, number, prompt in zip(
                job.plan.sections, numbers, prompts or [each.prompt for each in job.plan.sections], strict=True
            )
        ]
    }


def _counts(fits: tuple[Match, ...]) -> dict[str, Any]:
    """What a LoRA changes in all parts of the model: the number of layers, and of changes by their kind."""
    kinds = sum((Counter(fit.kinds) for fit in fits), Counter())
    return {"layers": sum(len(fit.layers) for fit in fits), "kinds": dict(sorted(kinds.items()))}
