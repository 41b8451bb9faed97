"""Results of a study: comparison of arms, selection, laws over size, domains, compute, KPI."""
