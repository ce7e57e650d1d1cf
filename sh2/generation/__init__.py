"""Writing sequences: prompts, samples, rules for them, and steps at the speed of memory."""
