"""Reading sequences of any length: scores, families of alleles, vectors, tracks, and checks of all that."""
