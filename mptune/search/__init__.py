"""The application: a run of a search, its stages, and what is decided in them."""
