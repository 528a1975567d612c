"""The registry as a TUF repository: what it offers is what offline keys and publishers have signed, and no older.

Formats, signatures and the rules of trust are python-tuf's. Here is what joins them to a registry: which roles
there are (roles.py), ceremonies with offline keys (ceremony.py), what a publisher may upload (upload.py), the
metadata in the database and the keys that the server holds (repository.py, online.py), addresses (routes.py) and
commands (cli.py).
"""
