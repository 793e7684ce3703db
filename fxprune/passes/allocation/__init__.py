"""From groups, importance and cost tables to a problem for the solver, and back to a plan."""
