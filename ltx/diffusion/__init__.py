"""The diffusion method: conditioning, schedules, guidance, samplers, the transformer, and decoding to pixels."""
