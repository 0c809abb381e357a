"""The scenes world: pictures of coloured shapes and short words, made by code."""
