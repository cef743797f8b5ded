"""Parts of check_plan.py: the grid of cases, one case's measurement, many of them side by side."""
