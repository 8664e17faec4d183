"""`unmask backup` and `unmask restore`: what the state of a project consists of, one archive of it, and the way back."""
