"""The stages of the pipeline: each reads its parameters, calls conr and writes artifacts. No mathematics here."""
