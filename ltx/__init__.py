"""The engine: LTX-2.3 audio-to-video on torch and diffusers. It does not use ComfyUI; `python -m ltx` runs it."""
