"""The loader's side of `khub`: each module adds its arguments to a parser and sets `run`."""
