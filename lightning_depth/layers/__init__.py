"""Layers that torch lacks, or has with faults."""
