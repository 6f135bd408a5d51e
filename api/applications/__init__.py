"""The applications that are answered: what each takes, how that is checked, and the graph that it becomes."""
