"""The engine: LTX-2.3 audio-to-video on torch and diffusers. It knows no ComfyUI; `python -m ltx` runs it headless."""
