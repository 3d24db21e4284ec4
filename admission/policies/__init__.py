"""Planning policies behind one interface."""
