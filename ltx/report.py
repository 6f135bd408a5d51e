"""What was asked and what was used, as the report of a finished video has it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from .job import Job


def describe(job: Job, prompt: str, notes: list[str]) -> dict[str, Any]:
    """The report of a job. prompt: as used. It has names of files and no paths: it travels in the file it is about."""
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
