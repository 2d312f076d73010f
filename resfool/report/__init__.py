"""How results look: pages, and what figures have in common."""
