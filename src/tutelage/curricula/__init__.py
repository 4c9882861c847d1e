"""What the student learns next. One curriculum, one file; `_base` holds the contract, `_draws` the shared sampling."""
