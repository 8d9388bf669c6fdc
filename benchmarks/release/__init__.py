"""What is made and measured for a release: the packaged model and the demo."""
