"""The command explain, for images and for videos."""
