"""From words to what the transformer attends to: Gemma, its tokenizer, expansion, contexts."""
