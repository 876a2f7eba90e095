"""Layers of files, named by their content, in a folder or in S3."""
