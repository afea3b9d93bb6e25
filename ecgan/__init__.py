"""ECGAN: edge guided GAN with contrastive learning, as a tool that makes labelled data."""

__version__ = "0.2.0"
