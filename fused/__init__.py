"""ipfsfs: plain local files under a FUSE mount, stored and versioned in IPFS behind it."""

__version__ = "0.1.0"
