"""What the sections of a model card say, each read from the files of the model's folder."""
