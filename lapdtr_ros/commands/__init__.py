"""One module per verb of the ``lapdtr`` command: `add_parser` and `execute`."""
