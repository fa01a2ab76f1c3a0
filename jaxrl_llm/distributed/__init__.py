"""Meshes and layouts over more than one device."""
