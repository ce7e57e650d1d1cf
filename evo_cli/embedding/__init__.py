"""`evo embed`: records to vectors, block by block, into the files that users read."""
