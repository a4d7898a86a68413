"""Feature networks: images in source units -> vectors that distances between sets of images are taken on."""
