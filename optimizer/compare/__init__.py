"""One report or bundle against another: what got worse, as far as the samples can tell."""
