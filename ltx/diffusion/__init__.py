"""The method: conditioning, schedules, guidance, samplers, the transformer, latents to pixels."""
