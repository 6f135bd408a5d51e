"""The socket types between this pack's nodes. Data that other packs can use, too, has ComfyUI's own types instead."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "LTX Audio-to-Video"

ModelIO = io.Custom("LTXA2V_MODEL")  # memory.Model: the transformer, with its LoRAs
ConnectorsIO = io.Custom("LTXA2V_CONNECTORS")  # memory.Handle
VideoVaeIO = io.Custom("LTXA2V_VIDEO_VAE")  # memory.Handle
AudioVaeIO = io.Custom("LTXA2V_AUDIO_VAE")  # memory.Handle
TextEncoderIO = io.Custom("LTXA2V_TEXT_ENCODER")  # memory.TextEncoder: Gemma and the connectors
VocoderIO = io.Custom("LTXA2V_VOCODER")  # memory.Handle
UpscalerIO = io.Custom("LTXA2V_UPSCALER")  # memory.Handle
TextIO = io.Custom("LTXA2V_TEXT")  # ltx.diffusion.conditioning.TextContext
AudioIO = io.Custom("LTXA2V_AUDIO")  # ltx.diffusion.conditioning.AudioCondition, or film.FilmSound
WindowsIO = io.Custom("LTXA2V_WINDOWS")  # film.Cut: how a film is cut into windows
TimelineIO = io.Custom("LTXA2V_TIMELINE")  # film.Timeline: its sections with their prompts
GuidesIO = io.Custom("LTXA2V_GUIDES")  # tuple of ltx.diffusion.conditioning.Guide
GuidanceIO = io.Custom("LTXA2V_GUIDANCE")  # ltx.diffusion.guidance.Guidance
RestartIO = io.Custom("LTXA2V_RESTART")  # ltx.diffusion.samplers.Restart
ClipIO = io.Custom("LTXA2V_CLIP")  # ltx.media.clip.Clip: pictures that are read as they are needed
RetakeIO = io.Custom("LTXA2V_RETAKE")  # film.Retake: a source, and what is made anew of it
ReferencesIO = io.Custom("LTXA2V_REFERENCES")  # for each window, a tuple of ltx.diffusion.conditioning.Reference
