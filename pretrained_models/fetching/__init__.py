"""Download, check and unpack pretrained models."""
