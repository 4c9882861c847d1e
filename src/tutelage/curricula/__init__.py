"""What the student learns next. One curriculum, one file; `_base` holds the contract, `_spaces` that over continuous spaces,
`_draws` the shared sampling."""
