"""The folder of an analysis of a model by training/analyze.py, as a publication finds it: its names and its pictures.

This module does not import PyTorch: the settings of analyze.py have it.
"""

ANALYSIS = "analysis"  # in the folder of the model
RECORD = "analysis.json"  # the settings, and the SHA-256 of the files with the weights
# What the picture of each analysis shows.
CAPTIONS = {
    "diversity": "Feature diversity: mean cosine distance of the channels of each block",
    "activations": "A photograph, and its activation maps: each small square is a channel",
    "context": "What the reconstruction of a hidden cell (outlined) depends on: the share of each visible cell",
    "layers": "Linear probe and nearest neighbours on the frozen features of each layer",
}
