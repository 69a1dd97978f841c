"""A page that shows a classifier and a pre-trained model to visitors: a Space on the Hub, or on your own machine."""
