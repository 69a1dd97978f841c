"""What can be exported and left out, by the names on the command line. It does not import PyTorch."""

CLASSIFICATION, FEATURES, BACKBONE = "classification", "features", "backbone"
SEGMENTATION, RECONSTRUCTION = "segmentation", "reconstruction"
TASKS = (CLASSIFICATION, FEATURES, BACKBONE, SEGMENTATION, RECONSTRUCTION)

# Layers that int8 can leave in float32, and parts of the names of their parameters, in both families.
LAYERS = {
    "stem": ("patch_embeddings",),
    "depthwise": ("dwconv", ".attn.weight"),
    "downsampling": ("downsampling_layer", ".patch_embed.proj"),
    "up": ("pwconv1", "fc1"),
    "down": ("pwconv2", "fc2"),
    "head": ("classifier.",),
}
