"""What `ipfsfs doctor` looks at. Nothing here makes or changes anything."""
