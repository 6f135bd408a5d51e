"""A miniature of LTX-2.3, trained on clips that code draws: its architecture, small enough for a repository."""
