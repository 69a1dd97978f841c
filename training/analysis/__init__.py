"""What a trained model has learned: the analyses of analyze.py."""
