"""Turns weight files into modules: names and configurations, quantized layers, checkpoints, LoRAs."""
