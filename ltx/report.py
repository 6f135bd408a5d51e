"""The report of a finished video: the requested values, the used values, and notes."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from .job import Job


def describe(job: Job, prompt: str, notes: list[str]) -> dict[str, Any]:
    """Makes the report of a job. prompt: the prompt as it was used. The report has file names but no paths, because it
    is stored in the video file."""
    asked = asdict(replace(job.request, given=frozenset(), notes=()))
    del asked["given"], asked["notes"]
    steering, frozen = job.steering[0], job.request.audio_strength == 1
    return {
        "asked": asked,
        "used": {
            "width": job.plan.width,
            "height": job.plan.height,
            "frames": job.plan.frames,
            "fps": str(job.plan.fps),
            "seed": job.request.seed,
            "prompt": prompt,
            "steps": steering.steps,
            "passes_per_step": steering.passes(frozen),
            "acceleration": job.request.acceleration,
            "model_version": job.checkpoint.version,
            "loras": [
                {"file": loaded.path.name, "layers": len(loaded.targets), "first_pass": first, "second_pass": second}
                for (loaded, first), (_, second) in zip(*job.loras, strict=True)
            ],
        },
        "notes": [*job.notes, *notes],
    }
