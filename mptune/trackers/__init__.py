"""Where the course of a search is shown beside others: one class per tracker."""
