"""From files of weights to modules: names and configurations, quantized layers, checkpoints, LoRAs."""
