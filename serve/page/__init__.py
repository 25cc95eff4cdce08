"""The page at `/`: one drops an image on it and sees prediction and map."""
