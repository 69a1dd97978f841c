"""What a published repository holds: card, licence, files, and the upload."""
