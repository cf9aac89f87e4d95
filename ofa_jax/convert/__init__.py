"""Moving weights between ofa_jax and other programs' files: reading and writing those files, without the programs."""
