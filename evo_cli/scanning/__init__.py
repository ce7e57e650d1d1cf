"""`evo scan`: contigs to tracks, piece by piece, and their pictures."""
