"""Turn audio into units: read files (``audio``), compute ``features``, assign them (``kmeans``)."""
