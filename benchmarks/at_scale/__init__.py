"""What limits 8, 64 and 512 GPUs: arithmetic on stated quantities, and what one machine can measure of it."""
