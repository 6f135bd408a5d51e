"""The results of the applications, as clients get them: for the OpenAPI document, and for what a result contains."""

from __future__ import annotations

from pydantic import BaseModel, Field, create_model

ResultVideo = create_model(
    "VideoFile",  # the name on the endpoint's page
    __doc__="The file, and what is in it.",
    url=(str, ...),
    content_type=(str, ...),
    file_name=(str, ...),
    file_size=(int, ...),
    width=(int, ...),
    height=(int, ...),
    fps=(float, ...),
    duration=(float, ...),
    num_frames=(int, ...),
)


class Output(BaseModel):
    """A request's result."""

    video: ResultVideo
    seed: int = Field(description="The seed that was used.")
    prompt: str = Field(description="The prompt that was used, after its expansion.")


class File(BaseModel):
    """A file and its address."""

    url: str
    content_type: str
    file_name: str


class VideoOutput(BaseModel):
    """A request's result: the video and nothing else."""

    video: File
