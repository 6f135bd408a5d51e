"""Turns a prompt into the contexts that the transformer attends to: Gemma, its tokenizer, expansion, caches."""
