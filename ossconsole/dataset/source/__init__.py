"""Where samples come from: folders, tars and zips of images, their layout, classes and splits."""
