"""What the planner found, for people (tables, lines, plots) and for programs (trees of plain values). Pure."""
