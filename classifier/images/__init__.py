"""Images from users: from untrusted bytes to upright 8-bit sRGB."""
