"""Toolchains fetched by package name from the user's own index, kept in a content-addressed cache."""
