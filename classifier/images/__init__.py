"""From the bytes that a user sends to upright 8-bit sRGB images."""
