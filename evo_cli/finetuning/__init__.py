"""`evo finetune` and `evo predict`: heads on a model, trained on labelled sequences, and what they say of others."""
