"""The stages of a build; STAGES lists them."""
