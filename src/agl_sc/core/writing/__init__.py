"""How results get onto a disk: claimed by one process, written beside, exchanged in one step."""
