"""The registry's pages: what a browser gets. Server-rendered, usable without JavaScript.

They live where no client asks: `/`, `/kernels`, `/{org}`, `/{org}/{name}`, `/kernels/{org}/{name}` and below it,
and `/-/`, which no organization can be called.
"""
