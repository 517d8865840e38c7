"""The demo: small corpora, on which the whole pipeline runs without downloading a corpus."""
