"""What is measured of a run: distances, each with an interval and a floor."""
