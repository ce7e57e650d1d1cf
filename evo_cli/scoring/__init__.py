"""`evo score`: records and alleles to rows."""
