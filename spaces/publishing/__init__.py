"""What a Space holds: page, models, requirements and README."""
