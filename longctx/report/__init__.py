"""What people look at: the result in a terminal, as a page, as a curve, and as tables for other programs."""
