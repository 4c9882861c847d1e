"""A benchmark of teachers over continuous task spaces, in the manner of TeachMyAgent."""
