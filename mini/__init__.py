"""A miniature of LTX-2.3, trained on clips that code draws: every feature of the model, small enough for a repository."""
