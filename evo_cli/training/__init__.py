"""`evo train`: its configuration, its run, and what a person sees of it."""
