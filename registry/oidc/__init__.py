"""Trusted publishing: a CI run proves who it is with its issuer's token and gets one of ours for minutes."""
