"""`evo eval`: what is measured, and its pictures."""
