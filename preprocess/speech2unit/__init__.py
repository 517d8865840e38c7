"""Audio to units: reading (``audio``), features by name (``features``), k-means (``kmeans``), the
loop (``quantize``).
"""
